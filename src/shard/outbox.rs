//! Frames that wait for one connection, in a pool: a connection has an outbox only while something
//! waits for it.

use std::collections::VecDeque;

use super::conn::NONE;
use crate::base::frame::SharedFrame;

/// What waits for one connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<SharedFrame>,
    /// Bytes of the first frame that are sent.
    skip: usize,
    /// Bytes not sent.
    bytes: usize,
    /// When the socket was found full and has taken nothing since.
    pub(super) blocked_tick: Option<u32>,
}

/// Frames for which an unused outbox keeps room.
const SPARE_FRAMES_MAX: usize = 8;

impl Outbox {
    /// Bytes not sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn push(&mut self, frame: SharedFrame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// What the driver is to send, and how much of the first is sent already.
    pub(super) fn unsent(&self) -> (impl ExactSizeIterator<Item = &SharedFrame>, usize) {
        (self.frames.iter(), self.skip)
    }

    /// `bytes` more are sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "more was sent than waited");
        self.bytes -= bytes;
        let mut sent = self.skip + bytes;
        while let Some(first) = self.frames.front() {
            if sent < first.len() {
                break;
            }
            sent -= first.len();
            self.frames.pop_front();
        }
        self.skip = sent;
    }

    /// Throws away what hasn't begun to go. A frame that is half sent stays: the peer couldn't read
    /// what follows otherwise.
    pub(super) fn drop_unsent(&mut self) {
        self.frames.truncate(usize::from(self.skip > 0));
        self.bytes = self.frames.front().map_or(0, |first| first.len() - self.skip);
    }
}

/// All outboxes of a shard.
#[derive(Debug, Default)]
pub(super) struct Outboxes {
    boxes: Vec<Outbox>,
    free: Vec<u32>,
    /// Bytes that wait in all of them.
    bytes: u64,
}

impl Outboxes {
    /// Adds a frame to the outbox `at`, which is taken from the pool if there is none.
    pub(super) fn push(&mut self, at: &mut u32, frame: SharedFrame) {
        if *at == NONE {
            *at = self.free.pop().unwrap_or_else(|| {
                self.boxes.push(Outbox::default());
                (self.boxes.len() - 1) as u32
            });
        }
        self.bytes += frame.len() as u64;
        self.boxes[*at as usize].push(frame);
    }

    pub(super) fn get(&self, at: u32) -> Option<&Outbox> {
        self.boxes.get(at as usize)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Outbox> {
        self.boxes.get_mut(at as usize)
    }

    /// `bytes` of the outbox `at` are sent.
    pub(super) fn advance(&mut self, at: u32, bytes: usize) {
        self.bytes -= bytes as u64;
        self.boxes[at as usize].advance(bytes);
    }

    /// See [`Outbox::drop_unsent`].
    pub(super) fn drop_unsent(&mut self, at: u32) {
        let Some(outbox) = self.boxes.get_mut(at as usize) else { return };
        let before = outbox.bytes;
        outbox.drop_unsent();
        self.bytes -= (before - outbox.bytes) as u64;
    }

    /// Gives an outbox back.
    pub(super) fn release(&mut self, at: &mut u32) {
        if *at == NONE {
            return;
        }
        let outbox = &mut self.boxes[*at as usize];
        self.bytes -= outbox.bytes as u64;
        outbox.frames.clear();
        outbox.frames.shrink_to(SPARE_FRAMES_MAX);
        (outbox.skip, outbox.bytes, outbox.blocked_tick) = (0, 0, None);
        self.free.push(*at);
        *at = NONE;
        if self.free.len() == self.boxes.len() && self.boxes.len() > SPARE_BOXES_MAX {
            // A burst is over: nothing of it stays.
            *self = Self::default();
        }
    }

    /// Bytes that wait in all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Outboxes in use.
    pub(super) fn in_use(&self) -> usize {
        self.boxes.len() - self.free.len()
    }
}

/// Unused outboxes kept for the next turn, when none is in use.
const SPARE_BOXES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn unsent(outbox: &Outbox) -> Vec<u8> {
        let (frames, skip) = outbox.unsent();
        frames.flat_map(|f| f.bytes().to_vec()).skip(skip).collect()
    }

    proptest::proptest! {
        // Frames pushed, bytes sent and queues dropped at random, against a plain queue of bytes.
        #[test]
        fn waits_for_what_a_plain_queue_would(
            ops in proptest::collection::vec((0..3u8, 1..9usize), 1..80),
        ) {
            let mut boxes = Outboxes::default();
            let mut at = NONE;
            let mut model: Vec<u8> = Vec::new();
            // How much of the model belongs to a frame that has begun to go.
            let mut ends: VecDeque<usize> = VecDeque::new();
            let mut begun = false;
            for (number, (op, bytes)) in (0u8..).zip(ops) {
                match op {
                    0 => {
                        boxes.push(&mut at, SharedFrame::new(&vec![number; bytes]));
                        model.extend(std::iter::repeat_n(number, bytes));
                        ends.push_back(bytes);
                    }
                    1 => {
                        let mut sent = bytes.min(model.len());
                        if sent > 0 {
                            boxes.advance(at, sent);
                        }
                        model.drain(..sent);
                        while sent > 0 {
                            let first = ends[0].min(sent);
                            ends[0] -= first;
                            sent -= first;
                            begun = ends[0] > 0;
                            if !begun {
                                ends.pop_front();
                            }
                        }
                    }
                    _ => {
                        boxes.drop_unsent(at);
                        ends.truncate(usize::from(begun));
                        model.truncate(ends.iter().sum());
                    }
                }
                let left = boxes.get(at).map(unsent).unwrap_or_default();
                proptest::prop_assert_eq!(&left, &model);
                proptest::prop_assert_eq!(boxes.bytes(), model.len() as u64);
            }
        }
    }

    #[test]
    fn advances_through_frames_and_counts() {
        let mut boxes = Outboxes::default();
        let mut at = NONE;
        for text in ["abc", "de", "fghi"] {
            boxes.push(&mut at, SharedFrame::new(text.as_bytes()));
        }
        let all = b"abcdefghi";
        for sent in 1..=all.len() {
            boxes.advance(at, 1);
            assert_eq!(unsent(&boxes.boxes[at as usize]), all[sent..]);
            assert_eq!(boxes.bytes(), (all.len() - sent) as u64);
        }
        assert!(boxes.boxes[at as usize].is_empty());
        boxes.release(&mut at);
        assert_eq!((at, boxes.in_use()), (NONE, 0));
    }

    #[test]
    fn a_half_sent_frame_is_finished() {
        let mut boxes = Outboxes::default();
        let mut at = NONE;
        boxes.push(&mut at, SharedFrame::new(b"abc"));
        boxes.push(&mut at, SharedFrame::new(b"def"));
        boxes.advance(at, 1);
        boxes.drop_unsent(at);
        assert_eq!((unsent(&boxes.boxes[at as usize]), boxes.bytes()), (b"bc".to_vec(), 2));
        boxes.advance(at, 2);
        boxes.push(&mut at, SharedFrame::new(b"ghi"));
        boxes.drop_unsent(at);
        assert_eq!(boxes.bytes(), 0);
    }
}
