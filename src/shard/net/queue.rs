//! Frames that wait for one connection, in a pool: a connection has an queue only while something
//! waits for it.

mod image;

use std::collections::VecDeque;

use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::limits::{FRAME_JOIN_BYTES_MAX, FRAME_MESSAGES_MAX};
use crate::proto::framing;
use crate::shard::net::record::NONE;

/// A frame that waits. 16 bytes.
#[derive(Debug)]
struct Waiting {
    frame: SharedFrame,
    /// The channel whose publications these are, by its place here, if newer ones may take their
    /// place; else [`NONE`]. Behind an unsubscribe the place may be another channel's: then these go
    /// with that one's, and nobody waits for them.
    channel: u32,
    /// How many.
    messages: u16,
    kind: Kind,
}

/// What may become of publications that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// They wait until they go, or until a newer one takes their place.
    Kept,
    /// The oldest are dropped when there are too many.
    Oldest,
    /// ... of a subscriber that takes patches, and they begin in full.
    OldestFull,
    /// ... and they begin with a patch, which builds on the ones before.
    OldestPatch,
}

impl Kind {
    fn is_delta(self) -> bool {
        matches!(self, Self::OldestFull | Self::OldestPatch)
    }
}

const _: () = assert!(size_of::<Waiting>() == 16);

/// Publications of a channel that may be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Droppable {
    /// Its place on this shard.
    pub(crate) channel: u32,
    /// How many they are.
    pub(crate) messages: u32,
    /// What may become of them.
    pub(crate) kind: Kind,
}

/// What was dropped of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Its place on this shard.
    pub(crate) channel: u32,
    /// Publications.
    pub(crate) messages: u32,
    /// What comes next has nothing to build on: it has to go in full.
    pub(crate) baseless: bool,
}

/// What waits for one connection.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    frames: VecDeque<Waiting>,
    /// Frames that a driver holds until its send has ended.
    in_flight: usize,
    /// Bytes of the first frame that are sent.
    skip: usize,
    /// Bytes not sent.
    bytes: usize,
    /// When the socket was found full and has taken nothing since.
    pub(crate) blocked_tick: Option<u32>,
    /// Messages in the last frame, if it holds replies to this connection alone; else 0.
    messages: u8,
}

/// Frames for which an unused queue keeps room.
const SPARE_FRAMES_MAX: usize = 8;

impl SendQueue {
    /// Bytes not sent.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn push(&mut self, frame: SharedFrame, droppable: Option<Droppable>) {
        self.bytes += frame.len();
        self.frames.push_back(match droppable {
            Some(Droppable { channel, messages, kind }) => {
                Waiting { frame, channel, messages: messages as u16, kind }
            }
            None => Waiting { frame, channel: NONE, messages: 0, kind: Kind::Kept },
        });
        self.messages = 0;
    }

    /// The first frame that hasn't begun to go.
    fn first_free(&self) -> usize {
        self.in_flight.max(usize::from(self.skip > 0))
    }

    /// A driver holds all that waits now, or nothing any more.
    pub(crate) fn set_in_flight(&mut self, in_flight: bool) {
        self.in_flight = if in_flight { self.frames.len() } else { 0 };
    }

    fn remove(&mut self, at: usize) -> Option<Waiting> {
        let waiting = self.frames.remove(at)?;
        self.bytes -= waiting.frame.len();
        if at == self.frames.len() {
            // What is last now is not what the count was about.
            self.messages = 0;
        }
        Some(waiting)
    }

    /// Drops what waits of a channel. How many publications that was.
    fn drop_channel(&mut self, channel: u32) -> u32 {
        let mut messages = 0;
        let mut at = self.first_free();
        while let Some(found) = self.next_of(channel, at) {
            messages += self.remove(found).map_or(0, |waiting| u32::from(waiting.messages));
            at = found;
        }
        messages
    }

    fn next_of(&self, channel: u32, from: usize) -> Option<usize> {
        let mut frames = self.frames.range(from.min(self.frames.len())..);
        frames.position(|waiting| waiting.channel == channel).map(|at| from + at)
    }

    /// Drops the oldest of what may be dropped until `bytes` more are not too many. Whether that was
    /// enough.
    fn make_room(&mut self, bytes: usize, bytes_max: usize, dropped: &mut Vec<Dropped>) -> bool {
        let mut at = self.first_free();
        while self.bytes + bytes > bytes_max {
            let mut frames = self.frames.range(at.min(self.frames.len())..);
            let Some(ahead) = frames.position(|waiting| waiting.kind != Kind::Kept) else {
                return false;
            };
            at += ahead;
            let Some(oldest) = self.remove(at) else { return false };
            let channel = oldest.channel;
            let mut messages = u32::from(oldest.messages);
            let delta = oldest.kind.is_delta();
            let mut next = if delta { self.next_of(channel, at) } else { None };
            // What builds on it goes with it.
            while let Some(patch) = next
                && self.frames[patch].kind == Kind::OldestPatch
            {
                messages += self.remove(patch).map_or(0, |waiting| u32::from(waiting.messages));
                next = self.next_of(channel, patch);
            }
            dropped.push(Dropped { channel, messages, baseless: delta && next.is_none() });
        }
        true
    }

    /// Adds a message for this connection alone: to the last frame, where messages share frames, or as a
    /// frame of its own. A frame that has begun to go, or that a driver holds (`in_flight`), stays
    /// as it is.
    fn push_message(&mut self, message: &[u8], form: Form, in_flight: bool, scratch: &mut Vec<u8>) {
        scratch.clear();
        let last = self.frames.back().map(|waiting| &waiting.frame).filter(|last| {
            let begun = in_flight || (self.skip > 0 && self.frames.len() == 1);
            framing::shares(form)
                && (1..FRAME_MESSAGES_MAX).contains(&self.messages)
                && !begun
                && last.len() + message.len() <= FRAME_JOIN_BYTES_MAX
        });
        let Some(last) = last else {
            framing::put(scratch, form, message);
            self.push(SharedFrame::new(scratch), None);
            self.messages = 1;
            return;
        };
        framing::extend(scratch, form, last.bytes(), message);
        self.bytes += scratch.len() - last.len();
        if let Some(last) = self.frames.back_mut() {
            last.frame = SharedFrame::new(scratch);
        }
        self.messages += 1;
    }

    /// What the driver is to send, and how much of the first is sent already.
    pub(crate) fn unsent(&self) -> (impl ExactSizeIterator<Item = &SharedFrame>, usize) {
        (self.frames.iter().map(|waiting| &waiting.frame), self.skip)
    }

    /// `bytes` more are sent.
    pub(crate) fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "more was sent than waited");
        self.bytes -= bytes;
        let mut sent = self.skip + bytes;
        while let Some(first) = self.frames.front() {
            if sent < first.frame.len() {
                break;
            }
            sent -= first.frame.len();
            self.frames.pop_front();
        }
        self.skip = sent;
    }

    /// Throws away what hasn't begun to go. A frame that is half sent stays, with all of its parts: the
    /// peer couldn't read what follows otherwise.
    pub(crate) fn drop_unsent(&mut self) {
        let begun = usize::from(self.skip > 0);
        let frames = self.frames.iter().map(|waiting| &waiting.frame);
        let parts = frames.skip(begun).take_while(|frame| frame.is_part()).count();
        self.frames.truncate(begun + parts);
        let left: usize = self.frames.iter().map(|waiting| waiting.frame.len()).sum();
        self.bytes = left - self.skip;
    }
}

/// All queues of a shard.
#[derive(Debug, Default)]
pub(crate) struct SendQueues {
    boxes: Vec<SendQueue>,
    free: Vec<u32>,
    /// Bytes that wait in all of them.
    bytes: u64,
}

impl SendQueues {
    /// Adds a frame to the queue `at`, which is taken from the pool if there is none.
    /// What waits there then is the answer, in bytes.
    pub(crate) fn push(
        &mut self,
        at: &mut u32,
        frame: SharedFrame,
        droppable: Option<Droppable>,
    ) -> usize {
        self.bytes += frame.len() as u64;
        let queue = self.taken(at);
        queue.push(frame, droppable);
        queue.bytes
    }

    /// See [`SendQueue::drop_channel`].
    pub(crate) fn drop_channel(&mut self, at: u32, channel: u32) -> u32 {
        let Some(queue) = self.boxes.get_mut(at as usize) else { return 0 };
        let before = queue.bytes;
        let messages = queue.drop_channel(channel);
        self.bytes -= (before - queue.bytes) as u64;
        messages
    }

    /// See [`SendQueue::make_room`]. What is dropped is added to `dropped`.
    pub(crate) fn make_room(
        &mut self,
        at: u32,
        bytes: usize,
        bytes_max: usize,
        dropped: &mut Vec<Dropped>,
    ) -> bool {
        let Some(queue) = self.boxes.get_mut(at as usize) else { return bytes <= bytes_max };
        let before = queue.bytes;
        let enough = queue.make_room(bytes, bytes_max, dropped);
        self.bytes -= (before - queue.bytes) as u64;
        enough
    }

    /// Adds a message for one connection alone; those of a turn share frames, in order.
    pub(crate) fn push_message(
        &mut self,
        at: &mut u32,
        message: &[u8],
        form: Form,
        in_flight: bool,
        scratch: &mut Vec<u8>,
    ) {
        let queue = self.taken(at);
        let before = queue.bytes;
        queue.push_message(message, form, in_flight, scratch);
        let added = queue.bytes - before;
        self.bytes += added as u64;
    }

    fn taken(&mut self, at: &mut u32) -> &mut SendQueue {
        if *at == NONE {
            *at = self.free.pop().unwrap_or_else(|| {
                self.boxes.push(SendQueue::default());
                (self.boxes.len() - 1) as u32
            });
        }
        &mut self.boxes[*at as usize]
    }

    pub(crate) fn get(&self, at: u32) -> Option<&SendQueue> {
        self.boxes.get(at as usize)
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> Option<&mut SendQueue> {
        self.boxes.get_mut(at as usize)
    }

    /// `bytes` of the queue `at` are sent.
    pub(crate) fn advance(&mut self, at: u32, bytes: usize) {
        self.bytes -= bytes as u64;
        self.boxes[at as usize].advance(bytes);
    }

    /// See [`SendQueue::drop_unsent`].
    pub(crate) fn drop_unsent(&mut self, at: u32) {
        let Some(queue) = self.boxes.get_mut(at as usize) else { return };
        let before = queue.bytes;
        queue.drop_unsent();
        self.bytes -= (before - queue.bytes) as u64;
    }

    /// Gives an queue back.
    pub(crate) fn release(&mut self, at: &mut u32) {
        if *at == NONE {
            return;
        }
        let queue = &mut self.boxes[*at as usize];
        self.bytes -= queue.bytes as u64;
        queue.frames.clear();
        queue.frames.shrink_to(SPARE_FRAMES_MAX);
        (queue.skip, queue.bytes, queue.blocked_tick) = (0, 0, None);
        (queue.messages, queue.in_flight) = (0, 0);
        self.free.push(*at);
        *at = NONE;
        if self.free.len() == self.boxes.len() && self.boxes.len() > SPARE_BOXES_MAX {
            // A burst is over: nothing of it stays.
            *self = Self::default();
        }
    }

    /// Bytes that wait in all of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SendQueues in use.
    pub(crate) fn in_use(&self) -> usize {
        self.boxes.len() - self.free.len()
    }
}

/// Unused queues kept for the next turn, when none is in use.
const SPARE_BOXES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws;

    fn unsent(queue: &SendQueue) -> Vec<u8> {
        let (frames, skip) = queue.unsent();
        frames.flat_map(|f| f.bytes().to_vec()).skip(skip).collect()
    }

    proptest::proptest! {
        // Frames pushed, bytes sent and queues dropped at random, against a plain queue of bytes.
        #[test]
        fn the_send_queue_equals_a_plain_queue(
            ops in proptest::collection::vec((0..3u8, 1..9usize), 1..80),
        ) {
            let mut boxes = SendQueues::default();
            let mut at = NONE;
            let mut model: Vec<u8> = Vec::new();
            // How much of the model belongs to a frame that has begun to go.
            let mut ends: VecDeque<usize> = VecDeque::new();
            let mut begun = false;
            for (number, (op, bytes)) in (0u8..).zip(ops) {
                match op {
                    0 => {
                        boxes.push(&mut at, SharedFrame::new(&vec![number; bytes]), None);
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
        let mut boxes = SendQueues::default();
        let mut at = NONE;
        for text in ["abc", "de", "fghi"] {
            boxes.push(&mut at, SharedFrame::new(text.as_bytes()), None);
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

    // What a client reads: the payload of each frame.
    fn payloads(queue: &SendQueue) -> Vec<String> {
        let (frames, _) = queue.unsent();
        frames.map(|f| String::from_utf8(ws::payload(f.bytes()).to_vec()).unwrap()).collect()
    }

    #[test]
    fn messages_for_one_connection_share_a_frame() {
        let mut boxes = SendQueues::default();
        let (mut at, mut scratch) = (NONE, Vec::new());
        let mut say = |boxes: &mut SendQueues, text: &str, in_flight| {
            boxes.push_message(&mut at, text.as_bytes(), Form::JSON, in_flight, &mut scratch);
            assert_eq!(boxes.bytes(), unsent(&boxes.boxes[at as usize]).len() as u64);
            at
        };
        for text in ["a", "b", "c"] {
            say(&mut boxes, text, false);
        }
        // A frame that others send too is left alone, and keeps its place.
        let mut at = say(&mut boxes, &"d".repeat(125), false);
        boxes.push(&mut at, ws::text_frame(b"shared"), None);
        say(&mut boxes, "e", false);
        let long = format!("a\nb\nc\n{}", "d".repeat(125));
        assert_eq!(payloads(&boxes.boxes[0]), [long.as_str(), "shared", "e"]);
        // Nor is one joined that has begun to go, whoever sends it.
        say(&mut boxes, "f", true);
        boxes.advance(at, boxes.bytes() as usize - 1);
        say(&mut boxes, "g", false);
        assert_eq!(payloads(&boxes.boxes[0]), ["f", "g"]);
        boxes.advance(at, boxes.bytes() as usize);
        for _ in 0..40 {
            say(&mut boxes, "x", false);
        }
        let counts: Vec<_> = payloads(&boxes.boxes[0]).iter().map(|p| p.lines().count()).collect();
        assert_eq!(counts, [16, 16, 8]);
        boxes.advance(at, boxes.bytes() as usize);
        say(&mut boxes, "x", false);
        say(&mut boxes, &"y".repeat(FRAME_JOIN_BYTES_MAX), false);
        assert_eq!(payloads(&boxes.boxes[0]).len(), 2);
    }

    #[test]
    fn binary_messages_stand_behind_each_other() {
        let mut boxes = SendQueues::default();
        let (mut at, mut scratch) = (NONE, Vec::new());
        for message in [b"\x01a", b"\x01b"] {
            boxes.push_message(&mut at, message, Form::BINARY, false, &mut scratch);
        }
        assert_eq!(unsent(&boxes.boxes[at as usize]), b"\x82\x04\x01a\x01b");
    }

    #[test]
    fn a_frame_in_parts_is_dropped_whole_or_finished() {
        let parts = [SharedFrame::new(b"ab"), SharedFrame::part(b"cd"), SharedFrame::part(b"e")];
        for (sent, left) in
            [(0, &b""[..]), (1, b"bcde"), (2, b"cde"), (3, b"de"), (4, b"e"), (5, b"")]
        {
            let mut boxes = SendQueues::default();
            let mut at = NONE;
            for part in &parts {
                boxes.push(&mut at, part.clone(), None);
            }
            boxes.push(&mut at, SharedFrame::new(b"next"), None);
            boxes.advance(at, sent);
            boxes.drop_unsent(at);
            assert_eq!(
                (unsent(&boxes.boxes[at as usize]), boxes.bytes()),
                (left.to_vec(), left.len() as u64)
            );
        }
    }

    #[test]
    fn the_first_frames_of_a_connection_are_never_dropped() {
        for sent in 0..4 {
            let mut boxes = SendQueues::default();
            let mut at = NONE;
            boxes.push(&mut at, SharedFrame::part(b"head"), None);
            boxes.push(&mut at, SharedFrame::new(b"abc"), None);
            boxes.advance(at, sent);
            boxes.drop_unsent(at);
            assert_eq!(unsent(&boxes.boxes[at as usize]), &b"head"[sent..]);
        }
    }

    #[test]
    fn a_half_sent_frame_is_finished() {
        let mut boxes = SendQueues::default();
        let mut at = NONE;
        boxes.push(&mut at, SharedFrame::new(b"abc"), None);
        boxes.push(&mut at, SharedFrame::new(b"def"), None);
        boxes.advance(at, 1);
        boxes.drop_unsent(at);
        assert_eq!((unsent(&boxes.boxes[at as usize]), boxes.bytes()), (b"bc".to_vec(), 2));
        boxes.advance(at, 2);
        boxes.push(&mut at, SharedFrame::new(b"ghi"), None);
        boxes.drop_unsent(at);
        assert_eq!(boxes.bytes(), 0);
    }

    fn queue(kinds: &[(u32, Kind)]) -> (SendQueues, u32) {
        let (mut boxes, mut at) = (SendQueues::default(), NONE);
        for (number, (channel, kind)) in (b'0'..).zip(kinds) {
            let droppable = Droppable { channel: *channel, messages: 1, kind: *kind };
            let droppable = Some(droppable).filter(|of| of.channel != NONE);
            boxes.push(&mut at, SharedFrame::new(&[number; 10]), droppable);
        }
        (boxes, at)
    }

    fn numbers(boxes: &SendQueues, at: u32) -> String {
        let (frames, _) = boxes.get(at).unwrap().unsent();
        frames.map(|frame| char::from(frame.bytes()[0])).collect()
    }

    #[test]
    fn the_oldest_are_dropped_with_the_patches_on_them() {
        let kinds = [
            (NONE, Kind::Kept),
            (1, Kind::OldestFull),
            (2, Kind::Oldest),
            (1, Kind::OldestPatch),
            (3, Kind::Kept),
            (1, Kind::OldestFull),
            (1, Kind::OldestPatch),
        ];
        let (mut boxes, at) = queue(&kinds);
        let mut dropped = Vec::new();
        // Room for one: 1 goes, and 3 with it, but 5 begins anew.
        assert!(boxes.make_room(at, 10, 70, &mut dropped));
        assert_eq!(numbers(&boxes, at), "02456");
        assert_eq!(dropped, [Dropped { channel: 1, messages: 2, baseless: false }]);
        // Room for more than there is: what is kept stays.
        let mut dropped = Vec::new();
        assert!(!boxes.make_room(at, 10, 25, &mut dropped));
        assert_eq!(numbers(&boxes, at), "04");
        let baseless: Vec<_> = dropped.iter().map(|of| (of.channel, of.baseless)).collect();
        assert_eq!(baseless, [(2, false), (1, true)]);
        assert_eq!(boxes.bytes(), 20);
    }

    #[test]
    fn a_frame_partly_written_is_neither_dropped_nor_replaced() {
        let (mut boxes, at) = queue(&[(1, Kind::Oldest), (1, Kind::Oldest), (1, Kind::Kept)]);
        boxes.advance(at, 3);
        assert!(!boxes.make_room(at, 10, 10, &mut Vec::new()));
        assert_eq!(numbers(&boxes, at), "02");
        boxes.get_mut(at).unwrap().set_in_flight(true);
        assert_eq!(boxes.drop_channel(at, 1), 0);
        boxes.get_mut(at).unwrap().set_in_flight(false);
        assert_eq!(boxes.drop_channel(at, 1), 1);
        assert_eq!((numbers(&boxes, at), boxes.bytes()), ("0".to_owned(), 7));
    }
}
