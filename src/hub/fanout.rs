//! A channel's publications on their way to its subscribers on one shard.
//!
//! ```text
//!   groups:  [ frames 7 8 9 | upto 900 ]  [ frames 10 | upto 901 ]
//!              ^ cursor at place 512        someone subscribed between 9 and 10
//! ```
//! Publications that have the same audience form a group: their frames are joined once, and each
//! subscriber gets the group in one write. The audience of a group are the places below `upto`,
//! the list's length when the group's publications came: whoever subscribes later stands behind.

use std::collections::VecDeque;
use std::ops::Range;

use crate::base::frame::SharedFrame;
use crate::base::limits::{FANOUT_BYTES_MAX, JOIN_BYTES_MAX};

#[derive(Debug)]
struct Group {
    frames: Vec<SharedFrame>,
    bytes: usize,
    upto: u32,
    /// Publications in `frames`, which is one frame once they are joined.
    publications: u32,
}

/// What waits to be sent to a channel's subscribers, oldest first.
#[derive(Debug, Default)]
pub struct FanOut {
    groups: VecDeque<Group>,
    /// Places of the first group that are done. Its frames are joined when the first slice goes.
    cursor: u32,
    bytes: usize,
}

/// One part of the work: `frame` to everyone at the places of `range`.
#[derive(Debug)]
pub struct Slice {
    /// The frames of a group, joined.
    pub frame: SharedFrame,
    /// How many publications `frame` holds.
    pub publications: u32,
    /// The places.
    pub range: Range<u32>,
}

impl FanOut {
    /// Adds a publication for the places below `upto`. False when [`FANOUT_BYTES_MAX`] is met: the
    /// publication is not taken, the channel has a gap here.
    pub fn push(&mut self, frame: SharedFrame, upto: u32) -> bool {
        if self.bytes + frame.len() > FANOUT_BYTES_MAX && !self.groups.is_empty() {
            return false;
        }
        self.bytes += frame.len();
        let begun = self.groups.len() == 1 && self.cursor > 0;
        match self.groups.back_mut() {
            Some(group)
                if !begun && group.upto == upto && group.bytes + frame.len() <= JOIN_BYTES_MAX =>
            {
                group.bytes += frame.len();
                group.publications += 1;
                group.frames.push(frame);
            }
            _ => {
                let bytes = frame.len();
                self.groups.push_back(Group { frames: vec![frame], bytes, upto, publications: 1 });
            }
        }
        true
    }

    /// The next part, at most `places_max` places. `None` when all is done.
    pub fn next(&mut self, places_max: u32, scratch: &mut Vec<u8>) -> Option<Slice> {
        let group = self.groups.front_mut()?;
        if group.frames.len() > 1 {
            scratch.clear();
            for frame in &group.frames {
                scratch.extend_from_slice(frame.bytes());
            }
            group.frames = vec![SharedFrame::new(scratch)];
        }
        let publications = group.publications;
        let frame = group.frames[0].clone();
        let end = group.upto.min(self.cursor.saturating_add(places_max));
        let range = self.cursor..end;
        self.cursor = end;
        if end == group.upto {
            self.bytes -= frame.len();
            self.groups.pop_front();
            self.cursor = 0;
        }
        Some(Slice { frame, publications, range })
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes of the publications that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(fan_out: &mut FanOut, places_max: u32) -> Vec<(String, u32, Range<u32>)> {
        let mut scratch = Vec::new();
        std::iter::from_fn(|| fan_out.next(places_max, &mut scratch))
            .map(|s| {
                let text = String::from_utf8(s.frame.bytes().to_vec()).unwrap();
                (text, s.publications, s.range)
            })
            .collect()
    }

    fn push(fan_out: &mut FanOut, text: &str, upto: u32) {
        assert!(fan_out.push(SharedFrame::new(text.as_bytes()), upto));
    }

    #[test]
    fn same_audience_is_joined_and_sliced() {
        let mut fan_out = FanOut::default();
        push(&mut fan_out, "a", 5);
        push(&mut fan_out, "b", 5);
        push(&mut fan_out, "c", 6);
        assert_eq!(fan_out.bytes(), 3);
        let expected = [("ab", 2, 0..3), ("ab", 2, 3..5), ("c", 1, 0..3), ("c", 1, 3..6)];
        let expected: Vec<_> = expected.into_iter().map(|(t, n, r)| (t.to_owned(), n, r)).collect();
        assert_eq!(drain(&mut fan_out, 3), expected);
        assert_eq!((fan_out.is_empty(), fan_out.bytes()), (true, 0));
    }

    #[test]
    fn what_comes_while_a_group_is_on_its_way_waits_for_the_next() {
        let mut fan_out = FanOut::default();
        push(&mut fan_out, "a", 4);
        let first = fan_out.next(2, &mut Vec::new()).unwrap();
        assert_eq!((first.frame.bytes(), first.range), (&b"a"[..], 0..2));
        push(&mut fan_out, "b", 4);
        let rest = drain(&mut fan_out, 10);
        assert_eq!(rest, [("a".to_owned(), 1, 2..4), ("b".to_owned(), 1, 0..4)]);
    }

    #[test]
    fn the_bound_refuses_but_one_always_goes() {
        let mut fan_out = FanOut::default();
        let large = SharedFrame::new(&vec![0; FANOUT_BYTES_MAX + 1]);
        assert!(fan_out.push(large.clone(), 1));
        assert!(!fan_out.push(SharedFrame::new(b"x"), 1));
        drain(&mut fan_out, 1);
        assert!(fan_out.push(large, 1));
    }
}
