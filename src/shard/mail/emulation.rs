//! Commands of the separate up-link on their way to the shard that has the session.

use compact_str::CompactString;

use super::asker::Asker;
use crate::base::heap::{HeapBytes, heap_bytes_of};
use crate::base::id::{ConnKey, ShardId};
use crate::base::image::durable;
use crate::proto::client::{self, Encoding};
use crate::proto::http::Reuse;

/// Commands for a connection on another shard, or on this one.
#[derive(Debug)]
pub struct Emulate {
    pub(crate) conn: ConnKey,
    pub(crate) form: CommandsForm,
    pub(crate) emulated: Emulated,
}

/// The form of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandsForm {
    /// As a client's request has said.
    Of(Encoding),
    /// As nodes send them to each other: that of the session, where JSON stands in a string literal.
    OfSession,
}

/// Commands for a session on another node.
#[derive(Debug)]
pub struct EmulateElsewhere {
    pub(crate) node: CompactString,
    pub(crate) session: CompactString,
    pub(crate) encoding: Encoding,
    pub(crate) data: Box<[u8]>,
    pub(crate) by: Emulating,
}

#[cfg(test)]
impl EmulateElsewhere {
    /// Of nobody, for a test of what it holds.
    pub(crate) fn holding(data: Box<[u8]>, cors: Box<str>, asker: Asker) -> Self {
        let (node, session) = (CompactString::new(&cors), CompactString::new(&cors));
        let by = Emulating { from: ShardId(0), asker, cors, reuse: Reuse::Keep };
        Self { node, session, encoding: Encoding::Json, data, by }
    }
}

impl HeapBytes for EmulateElsewhere {
    fn heap_bytes(&self) -> usize {
        heap_bytes_of!(&self.node, &self.session, &self.data, &self.by.cors)
    }
}

/// What became of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uptake {
    /// They are handled, or wait at the connection.
    Taken,
    /// There is no such session here, or it takes none.
    NoSession,
    /// They are not in the form of the session.
    Malformed,
    /// Too many wait at the connection.
    NoRoom,
}

impl Uptake {
    /// The status of the answer to the request that brought them: a session that has ended is no error.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Taken | Self::NoSession => 204,
            Self::Malformed => 400,
            Self::NoRoom => 503,
        }
    }
}

#[cfg(test)]
impl Emulate {
    /// Of nobody, for a test of what it holds.
    pub(crate) fn holding(data: Box<[u8]>, cors: Box<str>, asker: Asker) -> Self {
        let reuse = Reuse::Keep;
        let by = Emulating { from: ShardId(0), asker, cors, reuse };
        let form = CommandsForm::Of(Encoding::Json);
        Self { conn: asker.conn, form, emulated: Emulated { data, by: Some(by) } }
    }
}

impl HeapBytes for Emulate {
    fn heap_bytes(&self) -> usize {
        let cors = self.emulated.by.as_ref().map_or(0, |by| by.cors.heap_bytes());
        heap_bytes_of!(&self.emulated.data) + cors
    }
}

/// The sender of commands, which waits until they are handled: a request on some shard and how it is answered,
/// or the control thread.
#[derive(Debug)]
pub(crate) struct Emulating {
    pub(crate) from: ShardId,
    pub(crate) asker: Asker,
    /// Header lines of the answer.
    pub(crate) cors: Box<str>,
    /// Whether another request may follow.
    pub(crate) reuse: Reuse,
}

/// Commands as one frame, and who waits for them to be handled.
#[derive(Debug)]
pub(crate) struct Emulated {
    pub(crate) data: Box<[u8]>,
    /// `None`: its request is answered.
    pub(crate) by: Option<Emulating>,
}

// Requests are answered before an image is written.
durable!(Emulated { data } anew { by: None });

impl Emulated {
    /// Brings the commands from the form in which they came into the encoding of the session. False if they are
    /// in another one.
    pub(crate) fn take_form(&mut self, form: CommandsForm, encoding: Encoding) -> bool {
        match form {
            CommandsForm::Of(of) => of == encoding,
            CommandsForm::OfSession if encoding == Encoding::Json => {
                let text = client::text_of_literal(&self.data);
                text.map(|text| self.data = text.into_bytes().into()).is_some()
            }
            CommandsForm::OfSession => true,
        }
    }

    /// The commands as one frame.
    pub(crate) fn commands(&self) -> &[u8] {
        &self.data
    }

    /// Bytes of the commands and of their record, so that empty ones have a bound, too.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.data.len() + self.by.as_ref().map_or(0, |by| by.cors.len())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn commands_of_another_node_are_in_the_form_of_the_session() {
        let of = |data: &[u8]| Emulated { data: data.into(), by: None };
        let json = Encoding::Json;
        let mut quoted = of(br#""{\"id\":1}\n{}""#);
        assert!(quoted.take_form(CommandsForm::OfSession, json));
        assert_eq!(quoted.commands(), b"{\"id\":1}\n{}");
        for bad in [&b"{}"[..], b"\"", b"1", b"\"\xff\"", b"\"\" 1"] {
            assert!(!of(bad).take_form(CommandsForm::OfSession, json), "{bad:?}");
        }
        // A Protobuf message of 34 bytes begins like a string.
        let mut binary = of(b"\"\"");
        assert!(binary.take_form(CommandsForm::OfSession, Encoding::Protobuf));
        assert_eq!(binary.commands(), b"\"\"");
        assert!(binary.take_form(CommandsForm::Of(json), json));
        assert!(!binary.take_form(CommandsForm::Of(json), Encoding::Protobuf));
    }

    #[test]
    fn empty_commands_have_a_size_and_lines_of_the_answer_count() {
        let asker = Asker::of(ConnKey { index: 0, generation: NonZeroU32::MIN });
        let plain = Emulate::holding(Box::default(), "".into(), asker);
        assert!(plain.emulated.bytes() > 0 && plain.emulated.commands().is_empty());
        assert_eq!(plain.heap_bytes(), 0);
        let more = Emulate::holding(vec![0; 5].into(), "a: b".into(), asker);
        assert_eq!(more.emulated.bytes(), plain.emulated.bytes() + 9);
        assert!(more.heap_bytes() >= 9);
    }
}
