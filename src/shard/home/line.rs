//! One channel that a broker beside this node keeps: how far its publications have come, and the operations
//! that wait.
//!
//! ```text
//!  Off --Listen--> Begun --Listening--> On        (back to Off when the connection is lost)
//! ```
//! The line compares each publication with its position. The next one goes to the subscribers; one that they
//! have is dropped; one that doesn't follow is held back, and the publications between are read once, for all
//! subscribers. Only when these can't be had, because the stream was trimmed, began a new life or went back,
//! do subscribers get a gap.
//!
//! A subscriber joins at the position of the line. The publications that it missed are read by a command, and
//! the answer may be older or newer than the line by then: publications that came since the command was sent
//! are kept until the answer is there (`recent`), and the line catches up with a newer answer first.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use super::remote::Op;
use crate::hub::broker::{Entry, Ticket};
use crate::hub::history::{Epoch, Position, Published, Record, Since};

/// Whether the broker delivers the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// No.
    Off,
    /// It was requested.
    Begun,
    /// Yes.
    On,
}

/// The outcome of news about a channel.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Publications were lost: subscribers with a position are out of it.
    pub(super) gap: bool,
    /// Publications for the subscribers, in order, behind the gap.
    pub(super) deliver: Vec<Record>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) namespace: u16,
    pub(super) link: Link,
    /// Where the subscribers stand. `None`: there are none, or the channel has no history.
    pub(super) at: Option<Position>,
    /// The fingerprint of the publication there, where it is known: an equal offset with another publication
    /// shows that the stream went back and was written anew.
    latest: Option<u64>,
    /// Operations that are not done, in order.
    pub(super) ops: VecDeque<Op>,
    /// Publications that came while a read is open, oldest first.
    recent: Vec<(Epoch, Entry)>,
    /// Publications that don't follow the position.
    ahead: Vec<(Epoch, Entry)>,
    /// Bytes of both.
    held: usize,
    /// The read that closes a hole.
    pub(super) repair: Option<Ticket>,
    /// Such a read is needed.
    pub(super) needs_repair: bool,
}

impl Line {
    pub(super) fn new(namespace: u16) -> Self {
        Self {
            namespace,
            link: Link::Off,
            at: None,
            latest: None,
            ops: VecDeque::new(),
            recent: Vec::new(),
            ahead: Vec::new(),
            held: 0,
            repair: None,
            needs_repair: false,
        }
    }

    /// A publication has come.
    pub(super) fn arrive(&mut self, epoch: Option<Epoch>, entry: Entry) -> Effects {
        let mut effects = Effects::default();
        let Some(epoch) = epoch else {
            effects.deliver.push(entry.record);
            return effects;
        };
        let Some(at) = &self.at else {
            // Nobody has a position yet: a read that is open will say where this belongs.
            self.keep(epoch, entry);
            return effects;
        };
        let is_known = at.epoch.as_ref() == Some(&epoch) && entry.record.offset() <= at.offset;
        if is_known {
            return effects;
        }
        self.held += entry.record.bytes();
        self.ahead.push((epoch, entry));
        self.drain(&mut effects);
        self.bound(&mut effects);
        effects
    }

    /// The answer of the read that closes a hole.
    pub(super) fn repaired(&mut self, top: &Position, entries: &[Entry]) -> Effects {
        let mut effects = Effects::default();
        (self.repair, self.needs_repair) = (None, false);
        // Publications of another life than the broker names now are late copies.
        let held = &mut self.held;
        self.ahead.retain(|(epoch, entry)| {
            let keep = top.epoch.as_ref() == Some(epoch);
            *held -= if keep { 0 } else { entry.record.bytes() };
            keep
        });
        if self.is_rewritten(entries) {
            self.move_to(top, &mut effects);
        }
        self.catch_up(top, entries, &mut effects);
        if self.at.as_ref().is_some_and(|at| at.epoch != top.epoch || at.offset < top.offset) {
            // Another life, or some of it is not there any more.
            self.move_to(top, &mut effects);
        }
        effects
    }

    /// Goes on to publications that were read. False when the line doesn't reach `top` by them.
    pub(super) fn catch_up(
        &mut self,
        top: &Position,
        entries: &[Entry],
        effects: &mut Effects,
    ) -> bool {
        let Some(at) = &self.at else { return false };
        if at.epoch == top.epoch && at.offset > top.offset && self.is_rewound(top) {
            self.move_to(top, effects);
            return true;
        }
        if at.epoch != top.epoch {
            return false;
        }
        for entry in entries {
            self.take(entry.clone(), effects);
        }
        self.drain(effects);
        self.at.as_ref().is_some_and(|at| at.offset >= top.offset)
    }

    /// Another publication stands where the line does.
    fn is_rewritten(&self, entries: &[Entry]) -> bool {
        let (Some(at), Some(latest)) = (&self.at, self.latest) else { return false };
        let here = entries.iter().find(|entry| entry.record.offset() == at.offset);
        here.is_some_and(|entry| fingerprint(&entry.record) != latest)
    }

    /// The answer to a read is older than the line. Publications that came since the read was sent explain
    /// that; else the stream went back, as after a failover that lost the end.
    fn is_rewound(&self, top: &Position) -> bool {
        let mut last = top.offset;
        for (epoch, entry) in &self.recent {
            if Some(epoch) == top.epoch.as_ref() && entry.after == last {
                last = entry.record.offset();
            }
        }
        self.at.as_ref().is_some_and(|at| last < at.offset)
    }

    /// The line stands elsewhere: the subscribers miss what is between.
    fn move_to(&mut self, top: &Position, effects: &mut Effects) {
        effects.gap = true;
        (self.at, self.latest) = (Some(top.clone()), None);
        self.held -= self.recent.iter().map(|(_, entry)| entry.record.bytes()).sum::<usize>();
        self.recent = Vec::new();
        self.drain(effects);
    }

    /// Hands out a publication if it is the next one.
    fn take(&mut self, entry: Entry, effects: &mut Effects) -> bool {
        let Some(at) = &mut self.at else { return false };
        if entry.after != at.offset {
            return false;
        }
        at.offset = entry.record.offset();
        self.latest = Some(fingerprint(&entry.record));
        effects.deliver.push(entry.record.clone());
        if let Some(epoch) = at.epoch.clone() {
            self.keep(epoch, entry);
        }
        true
    }

    /// Hands out the publications ahead that follow now. Those that can't follow any more are dropped.
    fn drain(&mut self, effects: &mut Effects) {
        while let Some(at) = self.at.clone() {
            let follows = |(epoch, entry): &(Epoch, Entry)| {
                at.epoch.as_ref() == Some(epoch) && entry.after == at.offset
            };
            let Some(next) = self.ahead.iter().position(follows) else { break };
            let (_, entry) = self.ahead.swap_remove(next);
            self.held -= entry.record.bytes();
            self.take(entry, effects);
        }
        if let Some(at) = &self.at {
            let is_over = |epoch: &Epoch, entry: &Entry| {
                at.epoch.as_ref() == Some(epoch) && entry.record.offset() <= at.offset
            };
            let held = &mut self.held;
            self.ahead.retain(|(epoch, entry)| {
                let keep = !is_over(epoch, entry);
                *held -= if keep { 0 } else { entry.record.bytes() };
                keep
            });
        }
        self.needs_repair = !self.ahead.is_empty();
    }

    /// Keeps a publication for reads that are open.
    fn keep(&mut self, epoch: Epoch, entry: Entry) {
        if self.ops.iter().any(Op::reads) || self.repair.is_some() {
            self.held += entry.record.bytes();
            self.recent.push((epoch, entry));
        }
    }

    /// Forgets publications that no open read needs.
    pub(super) fn forget_recent(&mut self) {
        if !self.recent.is_empty() && self.repair.is_none() && !self.ops.iter().any(Op::reads) {
            self.held -= self.recent.iter().map(|(_, entry)| entry.record.bytes()).sum::<usize>();
            self.recent = Vec::new();
        }
    }

    /// Too much is held back: rather a gap than more memory. The repair finds the position, and reads begin
    /// anew behind it.
    fn bound(&mut self, effects: &mut Effects) {
        if self.held > LINE_BYTES_MAX {
            self.forget_held();
            self.ops.iter_mut().for_each(Op::read_again);
            (effects.gap, self.needs_repair) = (true, true);
        }
    }

    fn forget_held(&mut self) {
        (self.recent, self.ahead, self.held) = (Vec::new(), Vec::new(), 0);
    }

    /// The connection to the broker is lost: positions stay, everything else begins anew.
    pub(super) fn lose(&mut self) {
        self.forget_held();
        (self.link, self.repair, self.needs_repair) = (Link::Off, None, false);
    }

    /// Nobody listens any more.
    pub(super) fn end(&mut self) {
        self.lose();
        (self.at, self.latest) = (None, None);
    }

    /// The first position, by a read: publications that came meanwhile follow it.
    pub(super) fn begin(&mut self, top: &Position) {
        (self.at, self.latest) = (Some(top.clone()), None);
        for (epoch, entry) in self.recent.clone() {
            let Some(at) = &mut self.at else { continue };
            let same = at.epoch.as_ref() == Some(&epoch);
            if same && entry.after == at.offset {
                at.offset = entry.record.offset();
                self.latest = Some(fingerprint(&entry.record));
            } else if !same || entry.record.offset() > at.offset {
                self.held += entry.record.bytes();
                self.ahead.push((epoch, entry));
                self.needs_repair = true;
            }
        }
    }

    /// The publications behind `since` up to the line's position, from a read and what came after it.
    /// `None`: some are not there.
    pub(super) fn missed<'a>(
        &'a self,
        entries: &'a [Entry],
        since: &Since,
        limit: usize,
    ) -> Option<Vec<&'a Record>> {
        let at = self.at.as_ref()?;
        let epoch = at.epoch.as_ref()?;
        if !since.epoch.is_empty() && since.epoch != epoch.as_str() {
            return None;
        }
        let recent = self.recent.iter().filter(|(of, _)| of == epoch).map(|(_, entry)| entry);
        let (mut list, mut last) = (Vec::new(), since.offset);
        for entry in entries.iter().chain(recent) {
            let offset = entry.record.offset();
            if offset <= last || offset > at.offset {
                continue;
            }
            if entry.after != last || list.len() == limit {
                return None;
            }
            list.push(&entry.record);
            last = offset;
        }
        (last == at.offset).then_some(list)
    }

    /// The same where only the latest publication counts (client protocol, 15.5).
    pub(super) fn latest<'a>(
        &'a self,
        entries: &'a [Entry],
        since: &Since,
    ) -> Option<Vec<&'a Record>> {
        let at = self.at.as_ref()?;
        let epoch = at.epoch.as_ref()?;
        if since.offset > 0 && since.offset == at.offset && since.epoch == epoch.as_str() {
            return Some(Vec::new());
        }
        let recent = self.recent.iter().filter(|(of, _)| of == epoch).map(|(_, entry)| entry);
        let mut all = entries.iter().chain(recent).map(|entry| &entry.record);
        Some(vec![all.rfind(|record| record.offset() == at.offset)?])
    }
}

fn fingerprint(record: &Record) -> u64 {
    let Published { data, info, tags, .. } = record.published();
    FixedState::default().hash_one((data, info, tags))
}

/// Bytes of publications that one line holds back or keeps for reads.
const LINE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: &str = "a life";

    fn entry(offset: u64) -> Entry {
        let data = offset.to_string();
        let published = Published { data: data.as_bytes(), ..Published::default() };
        Entry {
            after: offset - 1,
            time_ms: 0,
            delta: false,
            record: Record::new(offset, &published),
        }
    }

    fn top(offset: u64) -> Position {
        Position { offset, epoch: Some(LIFE.into()) }
    }

    fn at(offset: u64) -> Line {
        let mut line = Line::new(0);
        line.begin(&top(offset));
        line
    }

    fn offsets(effects: &Effects) -> Vec<u64> {
        effects.deliver.iter().map(Record::offset).collect()
    }

    fn arrive(line: &mut Line, offset: u64) -> Vec<u64> {
        let effects = line.arrive(Some(LIFE.into()), entry(offset));
        assert!(!effects.gap);
        offsets(&effects)
    }

    #[test]
    fn the_next_publication_is_delivered_and_a_copy_is_dropped() {
        let mut line = at(3);
        assert_eq!((arrive(&mut line, 4), arrive(&mut line, 4)), (vec![4], vec![]));
        assert_eq!((arrive(&mut line, 2), arrive(&mut line, 5)), (vec![], vec![5]));
        assert!(!line.needs_repair);
    }

    #[test]
    fn without_history_all_is_delivered() {
        let mut line = Line::new(0);
        let effects = line.arrive(None, Entry { after: 0, ..entry(1) });
        assert_eq!(offsets(&effects), [1]);
    }

    #[test]
    fn a_hole_is_closed_by_one_read() {
        let mut line = at(3);
        assert!(arrive(&mut line, 6).is_empty());
        assert!(line.needs_repair);
        let effects = line.repaired(&top(6), &[entry(4), entry(5), entry(6)]);
        assert_eq!((offsets(&effects), effects.gap), (vec![4, 5, 6], false));
        assert!(!line.needs_repair);
        // The read may be older than what is held back.
        assert!(arrive(&mut line, 9).is_empty());
        let effects = line.repaired(&top(7), &[entry(7)]);
        assert_eq!((offsets(&effects), line.needs_repair), (vec![7], true));
        assert_eq!(arrive(&mut line, 8), [8, 9]);
        assert!(!line.needs_repair && line.held == 0);
    }

    #[test]
    fn trimmed_publications_are_a_gap() {
        let mut line = at(3);
        assert!(arrive(&mut line, 9).is_empty());
        let effects = line.repaired(&top(8), &[entry(7), entry(8)]);
        assert!(effects.gap);
        assert_eq!((offsets(&effects), line.at), (vec![9], Some(top(9))));
    }

    #[test]
    fn another_life_is_a_gap_and_late_copies_of_the_old_one_are_none() {
        let mut line = at(3);
        let other = Position { offset: 5, epoch: Some("another".into()) };
        assert!(line.arrive(other.epoch.clone(), entry(5)).deliver.is_empty() && line.needs_repair);
        let effects = line.repaired(&other, &[]);
        assert!(effects.gap && line.at == Some(other.clone()));
        assert!(arrive(&mut line, 4).is_empty() && line.needs_repair);
        let effects = line.repaired(&other, &[]);
        assert!(!effects.gap && !line.needs_repair && line.held == 0);
    }

    #[test]
    fn a_stream_that_went_back_is_a_gap_also_when_it_was_written_anew() {
        let mut line = at(3);
        assert_eq!(arrive(&mut line, 4), [4]);
        let effects = line.repaired(&top(2), &[]);
        assert!(effects.gap && line.at == Some(top(2)));
        assert_eq!(arrive(&mut line, 3), [3]);
        let published = Published { data: b"anew", ..Published::default() };
        let anew = Entry { after: 2, time_ms: 0, delta: false, record: Record::new(3, &published) };
        let effects = line.repaired(&top(4), &[anew, entry(4)]);
        assert!(effects.gap && line.at == Some(top(4)));
    }

    #[test]
    fn missed_publications_are_a_chain_up_to_the_line() {
        let line = at(5);
        let since = |offset| Since { offset, epoch: LIFE.into() };
        let entries: Vec<Entry> = (4..=7).map(entry).collect();
        let missed = |since: Since, limit| {
            let list = line.missed(&entries, &since, limit)?;
            Some(list.into_iter().map(Record::offset).collect::<Vec<_>>())
        };
        assert_eq!(missed(since(3), 9), Some(vec![4, 5]));
        assert_eq!((missed(since(3), 1), missed(since(2), 9)), (None, None));
        assert_eq!((missed(since(5), 9), missed(since(6), 9)), (Some(vec![]), None));
        assert_eq!(missed(Since { offset: 5, epoch: "another".into() }, 9), None);
        let latest = |since: Since| line.latest(&entries, &since).map(|list| list.len());
        assert_eq!((latest(since(3)), latest(since(5))), (Some(1), Some(0)));
    }

    #[test]
    fn operations_held_back_are_bounded() {
        let mut line = at(3);
        let large = vec![b'x'; LINE_BYTES_MAX / 2];
        let published = Published { data: &large, ..Published::default() };
        let held = |offset| Entry {
            after: offset - 1,
            time_ms: 0,
            delta: false,
            record: Record::new(offset, &published),
        };
        assert!(!line.arrive(Some(LIFE.into()), held(8)).gap);
        assert!(line.arrive(Some(LIFE.into()), held(9)).gap);
        assert!(line.held == 0 && line.needs_repair);
    }
}
