//! Commands of the separate up-link on their way to the shard that has the session.

use super::asker::Asker;
use crate::base::heap::{HeapBytes, heap_bytes_of};
use crate::base::id::{ConnKey, ShardId};
use crate::base::image::durable;
use crate::proto::http::Reuse;

/// Commands for a connection on another shard, or on this one.
#[derive(Debug)]
pub struct Emulate {
    pub(crate) conn: ConnKey,
    pub(crate) protobuf: bool,
    pub(crate) emulated: Emulated,
}

#[cfg(test)]
impl Emulate {
    /// Of nobody, for a test of what it holds.
    pub(crate) fn holding(data: Box<[u8]>, cors: Box<str>, asker: Asker) -> Self {
        let reuse = Reuse::Keep;
        let by = Emulating { from: ShardId(0), asker, cors, reuse };
        Self { conn: asker.conn, protobuf: false, emulated: Emulated { data, by: Some(by) } }
    }
}

impl HeapBytes for Emulate {
    fn heap_bytes(&self) -> usize {
        let cors = self.emulated.by.as_ref().map_or(0, |by| by.cors.heap_bytes());
        heap_bytes_of!(&self.emulated.data) + cors
    }
}

/// Who waits for commands to be handled: a request on some shard, and how it is answered.
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
