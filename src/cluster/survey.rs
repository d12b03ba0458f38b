//! Surveys: a question to all nodes, or to one, and the answers of those that are known.
//!
//! A node that stays silent makes the asker wait for ten seconds and fail, so each question is answered, an
//! unknown one with [`Code::UnknownOperation`].

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use super::control::{SurveyRequest, SurveyResponse};
use super::schema::{ChannelInfo, ChannelsRequest, ChannelsResult};
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
}

const CHANNELS: &str = "channels";
const EMULATION: &str = "centrifuge_emulation";

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
        };
        SurveyRequest { id, op: op.into(), data }
    }
}

/// The answer of a node.
pub fn response(id: u64, code: Code, data: Vec<u8>) -> SurveyResponse {
    SurveyResponse { id, code: code as u32, data }
}

/// The data of an answer about channels.
pub fn put_channels(channels: impl IntoIterator<Item = (String, u32)>) -> Vec<u8> {
    let info = |(name, num_clients)| (name, ChannelInfo { num_clients });
    ChannelsResult { channels: channels.into_iter().map(info).collect() }.encode_to_vec()
}

/// Adds the data of an answer about channels to those of other nodes.
///
/// # Errors
/// It can't be read.
pub fn add_channels(all: &mut BTreeMap<String, u32>, data: &[u8]) -> Result<(), NotProtobuf> {
    let result = ChannelsResult::decode(data).map_err(|_| NotProtobuf)?;
    for (name, info) in result.channels {
        let count = all.entry(name).or_default();
        *count = count.saturating_add(info.num_clients);
    }
    Ok(())
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

    /// Those that have not answered.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.missing.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
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
    fn the_channels_of_all_nodes_are_added_up() {
        let mut all = BTreeMap::new();
        for answer in
            [put_channels([("a".into(), 2), ("b".into(), 1)]), put_channels([("a".into(), 3)])]
        {
            add_channels(&mut all, &answer).unwrap();
        }
        assert_eq!(all, BTreeMap::from([("a".into(), 5), ("b".into(), 1)]));
        assert_eq!(add_channels(&mut all, b"\xff"), Err(NotProtobuf));
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
