//! Surveys: a question to all nodes, or to one, and the answers of those that are known.
//!
//! A node that stays silent makes the asker wait for ten seconds and fail, so each question is answered, an
//! unknown one with [`Code::UnknownOperation`].

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, key_len, message, skip_field,
};

use super::control::{SurveyRequest, SurveyResponse};
use super::schema::{ChannelInfo, ChannelsRequest};
use crate::proto::client::nodes::NotProtobuf;
use crate::proto::client::schema::EmulationRequest;

/// Time for which an asker waits.
pub const ANSWERS_MS: u64 = 10_000;

/// The answer of a node in a number; each operation has others beside these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// Answered.
    Ok = 0,
    /// The node failed; for an emulation: the request can't be read.
    Internal = 1,
    /// The question can't be read; for an emulation: no such session.
    Invalid = 2,
    /// The node doesn't know the question.
    UnknownOperation = 3,
    /// The node has no room for the question now: of this project's nodes only.
    Busy = 4,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Channels with subscribers on the node, and their number; the pattern is a glob, empty for all.
    Channels {
        /// The glob.
        pattern: String,
    },
    /// Commands for a session on the node.
    Emulation {
        /// The session.
        session: String,
        /// A JSON string literal, or Protobuf.
        data: Vec<u8>,
    },
    /// Clients of a channel on the node: of this project's nodes only.
    Presence {
        /// The channel.
        channel: String,
        /// Their numbers are enough.
        counts: bool,
    },
}

const CHANNELS: &str = "channels";
const EMULATION: &str = "centrifuge_emulation";
const PRESENCE: &str = "roost_presence";
const PRESENCE_COUNTS: &str = "roost_presence_stats";

impl Question {
    /// Reads a question.
    ///
    /// # Errors
    /// It is unknown, or can't be read: the code to answer with.
    pub fn read(request: &SurveyRequest) -> Result<Self, Code> {
        match &*request.op {
            CHANNELS => {
                let read = ChannelsRequest::decode(&*request.data).map_err(|_| Code::Invalid)?;
                Ok(Self::Channels { pattern: read.pattern })
            }
            EMULATION => {
                let read = EmulationRequest::decode(&*request.data).map_err(|_| Code::Internal)?;
                Ok(Self::Emulation { session: read.session, data: read.data })
            }
            op @ (PRESENCE | PRESENCE_COUNTS) => {
                let channel = std::str::from_utf8(&request.data).map_err(|_| Code::Invalid)?;
                Ok(Self::Presence { channel: channel.to_owned(), counts: op == PRESENCE_COUNTS })
            }
            _ => Err(Code::UnknownOperation),
        }
    }

    /// The message that asks it; `node` is the one that an emulation is for.
    pub fn request(self, id: u64, node: &str) -> SurveyRequest {
        let (op, data) = match self {
            Self::Channels { pattern } => (CHANNELS, ChannelsRequest { pattern }.encode_to_vec()),
            Self::Emulation { session, data } => {
                (EMULATION, EmulationRequest { node: node.into(), session, data }.encode_to_vec())
            }
            Self::Presence { channel, counts } => {
                (if counts { PRESENCE_COUNTS } else { PRESENCE }, channel.into_bytes())
            }
        };
        SurveyRequest { id, op: op.into(), data }
    }
}

/// The answer of a node.
pub fn response(id: u64, code: Code, data: Vec<u8>) -> SurveyResponse {
    SurveyResponse { id, code: code as u32, data }
}

/// Appends one channel to the data of an answer about channels: an answer may be long, and is made of them one
/// by one.
pub fn put_channel(data: &mut Vec<u8>, name: &str, num_clients: u32) {
    let info = ChannelInfo { num_clients };
    let name_length = key_len(1) + encoded_len_varint(name.len() as u64) + name.len();
    encode_key(CHANNELS_TAG, WireType::LengthDelimited, data);
    encode_varint((name_length + message::encoded_len(2, &info)) as u64, data);
    encode_key(1, WireType::LengthDelimited, data);
    encode_varint(name.len() as u64, data);
    data.extend_from_slice(name.as_bytes());
    message::encode(2, &info, data);
}

/// The channels in the data of an answer, each with its number of clients, in the order in which they stand.
/// Nothing follows an error.
pub fn channels_in(data: &[u8]) -> impl Iterator<Item = Result<(&str, u32), NotProtobuf>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let next = next_channel(&mut rest);
        if matches!(next, Some(Err(_))) {
            rest = &[];
        }
        next
    })
}

/// The number of the field that has the channels: a map, which is a list of entries.
const CHANNELS_TAG: u32 = 1;

fn next_channel<'d>(rest: &mut &'d [u8]) -> Option<Result<(&'d str, u32), NotProtobuf>> {
    while !rest.is_empty() {
        match next_field(rest) {
            Ok((CHANNELS_TAG, Some(entry))) => return Some(entry_of(entry)),
            Ok(_) => {}
            Err(error) => return Some(Err(error)),
        }
    }
    None
}

/// A field: its number, and its bytes if it has a length.
fn next_field<'d>(rest: &mut &'d [u8]) -> Result<(u32, Option<&'d [u8]>), NotProtobuf> {
    let (tag, wire) = decode_key(rest).map_err(|_| NotProtobuf)?;
    if wire != WireType::LengthDelimited {
        skip_field(wire, tag, rest, DecodeContext::default()).map_err(|_| NotProtobuf)?;
        return Ok((tag, None));
    }
    let length = decode_varint(rest).map_err(|_| NotProtobuf)?;
    let length = usize::try_from(length).map_err(|_| NotProtobuf)?;
    let (bytes, behind) = rest.split_at_checked(length).ok_or(NotProtobuf)?;
    *rest = behind;
    Ok((tag, Some(bytes)))
}

fn entry_of(entry: &[u8]) -> Result<(&str, u32), NotProtobuf> {
    let (mut rest, mut name, mut info) = (entry, "", ChannelInfo::default());
    while !rest.is_empty() {
        match next_field(&mut rest)? {
            (1, Some(bytes)) => name = std::str::from_utf8(bytes).map_err(|_| NotProtobuf)?,
            (2, Some(bytes)) => info.merge(bytes).map_err(|_| NotProtobuf)?,
            _ => {}
        }
    }
    Ok((name, info.num_clients))
}

/// A survey of this node that is under way.
#[derive(Clone, Debug)]
pub struct Survey {
    id: u64,
    missing: BTreeSet<String>,
    answers: BTreeMap<String, SurveyResponse>,
}

impl Survey {
    /// Begins one among nodes.
    pub fn new(id: u64, nodes: impl IntoIterator<Item = String>) -> Self {
        Self { id, missing: nodes.into_iter().collect(), answers: BTreeMap::new() }
    }

    /// Takes an answer. False for one that is not of this survey, or comes twice.
    pub fn take(&mut self, from: &str, response: SurveyResponse) -> bool {
        let expected = response.id == self.id && self.missing.remove(from);
        if expected {
            self.answers.insert(from.into(), response);
        }
        expected
    }

    /// A node ended: it won't answer.
    pub fn ended(&mut self, uid: &str) {
        self.missing.remove(uid);
    }

    /// The answers by node, when all are there.
    pub fn complete(&self) -> Option<&BTreeMap<String, SurveyResponse>> {
        self.missing.is_empty().then_some(&self.answers)
    }

    /// The answers by node that are there.
    pub fn into_answers(self) -> BTreeMap<String, SurveyResponse> {
        self.answers
    }

    /// Those that have not answered.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.missing.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::schema::ChannelsResult;
    use super::*;

    #[test]
    fn questions_are_read_as_they_are_written() {
        for question in [
            Question::Channels { pattern: "p*".into() },
            Question::Channels { pattern: String::new() },
            Question::Emulation { session: "s".into(), data: b"\"{}\"".to_vec() },
        ] {
            let request = question.clone().request(7, "n");
            assert_eq!((request.id, Question::read(&request)), (7, Ok(question)));
        }
        let of = |op: &str, data: &[u8]| SurveyRequest { id: 1, op: op.into(), data: data.into() };
        assert_eq!(Question::read(&of("other", b"")), Err(Code::UnknownOperation));
        assert_eq!(Question::read(&of("channels", b"\xff")), Err(Code::Invalid));
        assert_eq!(Question::read(&of("centrifuge_emulation", b"\xff")), Err(Code::Internal));
    }

    #[test]
    fn channels_are_written_and_read_one_by_one() {
        let mut data = Vec::new();
        let channels = [("a", 2), ("", 0), ("news:ä", u32::MAX)];
        channels.iter().for_each(|(name, clients)| put_channel(&mut data, name, *clients));
        let info = |num_clients| ChannelInfo { num_clients };
        let all = channels.map(|(name, clients)| (name.to_owned(), info(clients))).into();
        assert_eq!(ChannelsResult::decode(&*data), Ok(ChannelsResult { channels: all }));
        let read = channels_in(&data).collect::<Result<Vec<_>, _>>();
        assert_eq!(read, Ok(channels.to_vec()));
        assert_eq!(channels_in(b"").count(), 0);
        // A field that is not known, and one that is cut off: nothing follows.
        let unknown = [&[0x10, 5][..], &data].concat();
        assert_eq!(channels_in(&unknown).count(), 3);
        let cut = channels_in(&data[..data.len() - 1]).collect::<Vec<_>>();
        assert_eq!(cut, [Ok(("a", 2)), Ok(("", 0)), Err(NotProtobuf)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_as_a_decoder_of_the_whole_reads_them(
            data in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let read: Result<BTreeMap<_, _>, _> = channels_in(&data).collect();
            // The other one also checks what stands in fields that are not known.
            if let Ok(whole) = ChannelsResult::decode(&*data) {
                let whole = whole.channels.iter();
                let whole = whole.map(|(name, info)| (name.as_str(), info.num_clients));
                prop_assert_eq!(read, Ok(whole.collect()));
            }
        }
    }

    #[test]
    fn a_survey_is_complete_when_each_known_node_has_answered_or_ended() {
        let mut survey = Survey::new(4, ["a", "b", "c"].map(String::from));
        assert!(survey.take("a", response(4, Code::Ok, vec![])));
        assert!(!survey.take("a", response(4, Code::Ok, vec![])), "twice");
        assert!(!survey.take("b", response(3, Code::Ok, vec![])), "of another survey");
        assert!(!survey.take("x", response(4, Code::Ok, vec![])), "not known");
        assert!(survey.complete().is_none());
        assert!(survey.take("b", response(4, Code::UnknownOperation, vec![])));
        assert_eq!(survey.missing().collect::<Vec<_>>(), ["c"]);
        survey.ended("c");
        assert_eq!(survey.complete().unwrap().len(), 2);
    }
}
