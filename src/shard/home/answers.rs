//! Answers that many ask for at once: a list of missed publications is encoded once for all clients
//! that come back with the same position, as they do after a storm.

use std::ops::Range;

use hashbrown::HashMap;

use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::limits::ANSWERS_BYTES_MAX;
use crate::hub::history::{Epoch, Position};

/// What an answer is to: these publications of this life of a stream, in this form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    channel: u32,
    epoch: Epoch,
    /// Where the stream stands.
    top: u64,
    /// How many of the latest it is.
    count: usize,
    form: Form,
}

impl Asked {
    /// The publications at `places` of the ring of a stream that stands at `top`; `None` for nothing.
    pub(crate) fn of(
        channel: u32,
        form: Form,
        top: &Position,
        places: &Range<usize>,
    ) -> Option<Self> {
        let epoch = top.epoch.clone().filter(|_| !places.is_empty())?;
        // They always end with the latest one.
        Some(Self { channel, epoch, top: top.offset, count: places.len(), form: form.content() })
    }
}

/// Encoded answers of the last second or so.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: HashMap<Asked, SharedFrame, foldhash::fast::FixedState>,
    bytes: usize,
}

impl Answers {
    /// The answer, if it was given before.
    pub(crate) fn get(&self, asked: &Asked) -> Option<SharedFrame> {
        self.known.get(asked).cloned()
    }

    /// Bytes of the answers that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps an answer for others. When they are too many, all go: those that are still asked for
    /// come again.
    pub(crate) fn insert(&mut self, asked: Asked, answer: SharedFrame) {
        if self.bytes + answer.len() > ANSWERS_BYTES_MAX {
            self.clear();
        }
        self.bytes += answer.len() + size_of::<Asked>();
        self.known.insert(asked, answer);
    }

    /// Forgets all: a storm is over, or goes on with new ones.
    pub(crate) fn clear(&mut self) {
        if !self.known.is_empty() {
            *self = Self::default();
        }
    }
}

/// Bytes that many replies have, deflated, of the last second or so.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// By the bytes' address and the form: the bytes, which so stay where they are, and the piece if it
    /// is shorter.
    known: HashMap<(usize, Form), (SharedFrame, Option<SharedFrame>), foldhash::fast::FixedState>,
    bytes: usize,
}

impl Pieces {
    fn key(form: Form, plain: &SharedFrame) -> (usize, Form) {
        (plain.bytes().as_ptr() as usize, form.of_connection())
    }

    /// What is known of bytes: a piece, or that there is no use in one.
    pub(crate) fn get(&self, form: Form, plain: &SharedFrame) -> Option<Option<SharedFrame>> {
        self.known.get(&Self::key(form, plain)).map(|(_, piece)| piece.clone())
    }

    /// Bytes of the pieces that are kept, and of what they were made of.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a piece for others. When they are too many, all go.
    pub(crate) fn insert(&mut self, form: Form, plain: &SharedFrame, piece: Option<SharedFrame>) {
        let bytes = plain.len() + piece.as_ref().map_or(0, SharedFrame::len);
        if self.bytes + bytes > ANSWERS_BYTES_MAX {
            self.clear();
        }
        self.bytes += bytes;
        self.known.insert(Self::key(form, plain), (plain.clone(), piece));
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        if !self.known.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::Framing;
    use crate::base::rng::Rng;

    #[test]
    fn the_same_question_has_one_answer() {
        let mut rng = Rng::new(1);
        let epoch = Some(Epoch::new(&mut rng));
        let top = Position { offset: 9, epoch: epoch.clone() };
        let asked = |top: &Position, form, places| Asked::of(1, form, top, &places).unwrap();
        let mut answers = Answers::default();
        answers.insert(asked(&top, Form::JSON, 2..5), SharedFrame::part(b"list"));
        let known = |top: &Position, form, places| answers.get(&asked(top, form, places)).is_some();
        // An older one has gone meanwhile: the ring's places moved, the publications are the same.
        assert!(known(&top, Form::JSON, 1..4));
        assert!(!known(&top, Form::BINARY, 2..5) && !known(&top, Form::JSON, 3..5));
        assert!(!known(&Position { offset: 10, epoch }, Form::JSON, 2..5));
        let other = Position { offset: 9, epoch: Some(Epoch::new(&mut rng)) };
        assert!(!known(&other, Form::JSON, 2..5));
        assert!(Asked::of(1, Form::JSON, &top, &(5..5)).is_none());
    }

    #[test]
    fn pieces_are_known_by_their_bytes_and_have_a_bound() {
        let mut pieces = Pieces::default();
        let (one, same) = (SharedFrame::part(b"list"), SharedFrame::part(b"list"));
        let other = Form::JSON.with_framing(Framing::deflate(9));
        pieces.insert(Form::JSON, &one, Some(SharedFrame::part(b"l")));
        pieces.insert(other, &one, None);
        assert_eq!(pieces.get(Form::JSON, &one).flatten().map(|piece| piece.len()), Some(1));
        assert!(pieces.get(other, &one).is_some_and(|piece| piece.is_none()));
        assert!(pieces.get(Form::JSON, &same).is_none());
        for _ in 0..5 {
            let list = SharedFrame::part(&vec![0; ANSWERS_BYTES_MAX / 2]);
            pieces.insert(Form::JSON, &list, None);
            assert!(pieces.bytes <= ANSWERS_BYTES_MAX);
        }
    }

    #[test]
    fn there_is_a_bound() {
        let mut answers = Answers::default();
        let mut rng = Rng::new(1);
        let list = SharedFrame::part(&vec![0; ANSWERS_BYTES_MAX / 2]);
        for _ in 0..5 {
            let top = Position { offset: 9, epoch: Some(Epoch::new(&mut rng)) };
            answers.insert(Asked::of(1, Form::JSON, &top, &(0..1)).unwrap(), list.clone());
            assert!(answers.bytes <= ANSWERS_BYTES_MAX + 1000);
        }
        answers.clear();
        assert_eq!((answers.bytes, answers.known.len()), (0, 0));
    }
}
