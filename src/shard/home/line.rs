//! One channel that a broker beside this node keeps: how far its publications have come, and the newest of
//! them.
//!
//! ```text
//!  Off --Listen--> Begun --Listening--> On        (Off when the connection is lost, Begun when interrupted)
//! ```
//! The line compares each publication with its position. The next one goes to the subscribers; a copy of one
//! that they have is dropped; one that doesn't follow is held back, and the publications between are read
//! once, for all subscribers. Only when these can't be had is there a gap, with a [`Cause`].
//!
//! At most one read is open for a line, whatever waits for it. Its answer and the deliveries have no order
//! between them, so the line decides by what it knew when it sent the read: the broker had all of that, and a
//! top below it proves that the stream went back. The same is proven by another publication at an offset that
//! the line knows, and by a publication where the broker had none.
//!
//! The newest publications are kept (`window`): a chain that ends at the position. Recoveries are answered
//! from there. A window that lacks older ones is filled by one read for all that wait.

mod image;

use std::collections::VecDeque;
use std::hash::BuildHasher;

use compact_str::CompactString;
use foldhash::fast::FixedState;

use crate::base::time::Millis;
use crate::hub::broker::{Entry, Ticket};
use crate::hub::history::{Epoch, Page, Position, Published, Record, Since};

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

/// Why publications can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The stream has another epoch.
    Epoch,
    /// The broker keeps them no longer.
    Trimmed,
    /// The stream went back.
    Rewind,
    /// More was held back than there is room for.
    Lag,
}

/// A publication for the subscribers.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) entry: Entry,
    /// The publication before it, where all subscribers that take patches have that as their latest.
    pub(super) base: Option<Record>,
    /// Where the subscribers stood.
    pub(super) after: u64,
}

/// The outcome of news about a channel.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Publications were lost: subscribers with a position are out of it.
    pub(super) gap: Option<Cause>,
    /// Publications for the subscribers, in order, behind the gap.
    pub(super) deliver: Vec<Next>,
    /// Of these, how many came by a read.
    pub(super) repaired: u64,
    /// Publications dropped, since the line was behind them already.
    pub(super) duplicates: u64,
}

/// What the operations that wait need of the line; the greater need includes the smaller ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Nothing.
    #[default]
    Nothing,
    /// The position.
    Position,
    /// Publications that clients missed.
    Missed,
}

/// A question to the broker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Query {
    Read(Page),
    Renew(Epoch),
}

/// The publications that a client lacks.
#[derive(Debug)]
pub(super) enum Missed<'a> {
    /// All of these.
    All(Vec<&'a Record>),
    /// Some can't be had.
    Gone,
    /// The window doesn't reach back so far: a read will tell.
    Unread,
}

/// A publication that is held back.
#[derive(Debug)]
struct Held {
    epoch: Epoch,
    entry: Entry,
    /// It came before the open read was sent: the answer knows of it.
    before_read: bool,
}

/// The read that is open.
#[derive(Debug)]
struct OpenRead {
    ticket: Ticket,
    /// The position when it was sent.
    at: Option<Position>,
    /// Newest first, as many as `limit`; else the ones behind the position and the one there.
    reverse: bool,
    limit: usize,
    /// It is a renewal.
    renews: bool,
    /// The offset of the position, if the broker had a publication there.
    marked: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) namespace: u16,
    pub(super) link: Link,
    /// Where the subscribers stand. `None`: nobody has a position, or it is to be read.
    at: Option<Position>,
    /// The fingerprint of the publication there. `None`: the broker kept none there when `at` was read.
    mark: Option<u64>,
    /// The newest publications, oldest first: each follows the one before it, and the last is that at `at`.
    window: VecDeque<Entry>,
    window_bytes: usize,
    /// Entries that came into the window since [`Self::take_unfiled`].
    unfiled: usize,
    /// No recovery can use a publication older than the window's.
    is_whole: bool,
    /// All subscribers that take patches have the publication at `at` as their latest.
    is_base: bool,
    /// The latest publication without history, where patches are wanted.
    bare: Option<Record>,
    /// When the window last got a publication.
    touched: Millis,
    /// When the broker last showed that the position is right.
    confirmed: Millis,
    /// Publications that don't follow the position, or came while it is read.
    ahead: Vec<Held>,
    /// Bytes of them.
    held: usize,
    read: Option<Box<OpenRead>>,
    /// Reads that were sent, and which of them was answered last. They count around.
    sent: u32,
    shown: u32,
    /// The position is to be read though nobody waits for it: the subscribers there are get a gap.
    begins: bool,
    /// The position is to be compared with the broker's.
    checks: bool,
    /// The same, though nothing is in doubt: subscribers who begin there are to see all that was published
    /// before they came.
    looks: bool,
    /// Deliveries were interrupted since it was: the stream may have gone back meanwhile.
    is_unsure: bool,
    /// Held publications were dropped since the read was sent, so that its answer may be older than these.
    is_stale: bool,
    /// The broker keeps no history of the channel.
    pub(super) is_plain: bool,
    /// The epoch of a stream that went back: the broker is to replace it.
    renews: Option<Epoch>,
}

impl Line {
    pub(super) fn new(namespace: u16) -> Self {
        Self {
            namespace,
            link: Link::Off,
            at: None,
            mark: None,
            window: VecDeque::new(),
            window_bytes: 0,
            unfiled: 0,
            is_whole: false,
            is_base: false,
            bare: None,
            touched: Millis(0),
            confirmed: Millis(0),
            ahead: Vec::new(),
            held: 0,
            read: None,
            sent: 0,
            shown: 0,
            begins: false,
            checks: false,
            looks: false,
            is_unsure: false,
            is_stale: false,
            is_plain: false,
            renews: None,
        }
    }

    /// Where the subscribers stand.
    pub(super) fn at(&self) -> Option<&Position> {
        self.at.as_ref()
    }

    /// The bytes of the window.
    pub(super) fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// The publications in the window.
    pub(super) fn window_len(&self) -> usize {
        self.window.len()
    }

    /// How many publications have come into the window since the last call.
    pub(super) fn take_unfiled(&mut self) -> usize {
        std::mem::take(&mut self.unfiled)
    }

    /// Whether the answer with this ticket is for the line.
    pub(super) fn reads(&self, ticket: Ticket) -> bool {
        self.read.as_ref().is_some_and(|read| read.ticket == ticket)
    }

    /// Reads that were sent so far, for [`Self::may_lag`].
    pub(super) fn reads_sent(&self) -> u32 {
        self.sent
    }

    /// A client has seen more of this stream than the line, as one that comes from another node to which
    /// publications come sooner. Only the answer to a read behind the first `sent` ones shows whether the
    /// line lags, or the stream went back.
    pub(super) fn may_lag(&self, since: &Since, sent: u32) -> bool {
        let is_ahead = self
            .place()
            .is_some_and(|(at, epoch)| since.offset > at.offset && since.epoch == epoch.as_str());
        is_ahead && !self.has_shown(sent)
    }

    /// A read behind the first `sent` ones is answered: the position is not older than it. True as well where
    /// the broker has no positions.
    pub(super) fn has_shown(&self, sent: u32) -> bool {
        self.is_plain || self.shown.wrapping_sub(sent).cast_signed() > 0
    }

    /// Subscribers may join at the position: it is known, and nothing about it is in doubt.
    pub(super) fn is_settled(&self) -> bool {
        let in_doubt = self.checks || !self.ahead.is_empty() || self.renews.is_some();
        let is_checked = self.read.as_ref().is_none_or(|read| read.reverse && read.at.is_some());
        self.is_plain || self.at.is_some() && !in_doubt && is_checked
    }

    /// Deliveries have begun: publications may have come between the last one and this moment.
    pub(super) fn listen(&mut self) {
        self.link = Link::On;
        self.is_unsure = self.at.is_some();
        self.check();
    }

    /// Nothing has come for so long: the latest publications may be lost. Whether the position is to be checked.
    pub(super) fn is_due(&self, now: Millis, quiet_ms: u64) -> bool {
        let follows = self.at.is_some() && self.link == Link::On && self.read.is_none();
        follows && now.since(self.confirmed) >= quiet_ms
    }

    /// The position is to be held against the broker's.
    pub(super) fn check(&mut self) {
        self.checks |= self.at.is_some();
    }

    /// The position is to be read again for a subscriber who begins there. Others join meanwhile: a stream of
    /// subscribers would otherwise keep each other waiting.
    pub(super) fn look(&mut self) {
        self.looks |= self.at.is_some();
    }

    /// No deliveries, and no answer to the open read. Position and window stay: they are checked later.
    pub(super) fn lose(&mut self, link: Link) {
        self.link = link;
        (self.ahead, self.held) = (Vec::new(), 0);
        (self.read, self.is_stale, self.is_plain) = (None, false, false);
    }

    /// A publication has come.
    pub(super) fn arrive(
        &mut self,
        now: Millis,
        epoch: Option<Epoch>,
        entry: Entry,
        kept_max: usize,
    ) -> Effects {
        let mut effects = Effects::default();
        let Some(epoch) = epoch else {
            self.arrive_bare(entry, &mut effects);
            return effects;
        };
        if self.link != Link::On {
            return effects;
        }
        if self.at.is_none() && self.read.is_none() && !self.begins && self.renews.is_none() {
            // Nobody has a position, and nobody waits for one.
            effects.deliver.push(Next { after: entry.after, entry, base: None });
            return effects;
        }
        self.held += entry.record.bytes();
        self.ahead.push(Held { epoch, entry, before_read: false });
        self.drain(now, kept_max, &mut effects);
        if self.held > HELD_BYTES_MAX {
            self.forget_held();
            self.restart(Cause::Lag, &mut effects);
        }
        effects
    }

    /// A publication without a place in a stream: it goes to the subscribers as it is.
    fn arrive_bare(&mut self, entry: Entry, effects: &mut Effects) {
        self.is_base = false;
        let base = self.bare.take().filter(|_| entry.delta);
        if entry.delta && self.at.is_none() {
            self.bare = Some(entry.record.clone());
        }
        effects.deliver.push(Next { entry, base, after: 0 });
    }

    /// The question that the broker has to answer next, if any. `unmet`: an operation needs publications
    /// older than the window's. `limit`: publications that a recovery may have at most.
    pub(super) fn query(
        &mut self,
        ticket: Ticket,
        need: Need,
        unmet: bool,
        limit: usize,
    ) -> Option<Query> {
        if self.read.is_some() || self.link != Link::On || self.is_plain {
            return None;
        }
        let limit = limit.max(1);
        let newest = |limit| (Page { since: None, limit, reverse: true }, limit);
        let (page, limit) = match &self.at {
            _ if self.renews.is_some() => newest(1),
            None if need == Need::Missed => newest(limit),
            None if need == Need::Position || self.begins => newest(1),
            None => return None,
            Some(at) if self.checks || self.looks || !self.ahead.is_empty() => {
                // With the publication that the line stands at, to see that it is still the same.
                let offset = at.offset.saturating_sub(1);
                let since = Some(Since { offset, epoch: CompactString::default() });
                (Page { since, limit: CHECKED_MAX, reverse: false }, CHECKED_MAX)
            }
            Some(_) if unmet => newest(limit),
            Some(_) => return None,
        };
        self.ahead.iter_mut().for_each(|held| held.before_read = true);
        (self.checks, self.looks, self.is_stale) = (false, false, false);
        self.sent = self.sent.wrapping_add(1);
        let (at, reverse) = (self.at.clone(), page.reverse);
        let renews = self.renews.is_some();
        let marked = at.as_ref().filter(|_| self.mark.is_some()).map(|at| at.offset);
        self.read = Some(Box::new(OpenRead { ticket, at, reverse, limit, renews, marked }));
        Some(match &self.renews {
            Some(epoch) => Query::Renew(epoch.clone()),
            None => Query::Read(page),
        })
    }

    /// The open read failed. What it was for is still needed. `unsupported`: the broker can't do it at all.
    pub(super) fn query_failed(&mut self, unsupported: bool) {
        let Some(read) = self.read.take() else { return };
        self.checks |= read.at.is_some();
        if unsupported && self.renews.take().is_some() {
            self.begins = true;
        } else if unsupported {
            self.is_plain = true;
            self.forget_place();
        }
    }

    /// The answer to the open read. `limit`: publications that a recovery may have at most.
    pub(super) fn answered(
        &mut self,
        now: Millis,
        top: Position,
        mut entries: Vec<Entry>,
        limit: usize,
        kept_max: usize,
    ) -> Effects {
        let mut effects = Effects::default();
        let Some(read) = self.read.take() else { return effects };
        self.shown = self.sent;
        self.checks |= std::mem::take(&mut self.is_stale);
        self.confirmed = now;
        if self.renews.is_some() && !read.renews {
            // It is of the life that is to end.
            return effects;
        }
        let Some(epoch) = top.epoch.clone() else {
            self.is_plain = true;
            self.forget_place();
            return effects;
        };
        if read.reverse {
            entries.reverse();
        }
        self.renews = None;
        if self.has_gone_back(&read, &top, &entries) {
            self.rewind(epoch, &mut effects);
            return effects;
        }
        // Copies of a life that is over.
        let held = &mut self.held;
        self.ahead.retain(|of| {
            let keep = !of.before_read || of.epoch == epoch;
            *held -= if keep { 0 } else { of.entry.record.bytes() };
            keep
        });
        let is_whole = read.reverse && (read.limit >= limit || entries.len() < read.limit);
        match &self.at {
            None => self.begin(now, top, entries, is_whole, kept_max, &mut effects),
            Some(at) if at.epoch != top.epoch => self.restart(Cause::Epoch, &mut effects),
            Some(_) => {
                self.catch_up(now, &read, &top, &entries, kept_max, &mut effects);
                // An answer that ends before the window begins doesn't show what lies between: newer
                // publications came while it was under way, and gave up their room.
                if is_whole && self.floor().is_some_and(|floor| floor <= top.offset) {
                    self.fill(now, entries);
                }
            }
        }
        effects
    }

    /// The answer lacks something that the broker had before the read was sent, or shows another publication
    /// where the line knows one.
    fn has_gone_back(&self, read: &OpenRead, top: &Position, entries: &[Entry]) -> bool {
        let is_below = |at: &Position| at.epoch == top.epoch && top.offset < at.offset;
        let is_held = |of: &Held| {
            let same = top.epoch.as_ref() == Some(&of.epoch);
            of.before_read && same && top.offset < of.entry.record.offset()
        };
        read.at.as_ref().is_some_and(is_below)
            || self.ahead.iter().any(is_held)
            || self.at.as_ref().is_some_and(|at| at.epoch == top.epoch)
                && entries.iter().any(|entry| self.compare(entry) == Compared::Other)
    }

    /// Holds a publication of this epoch against the ones that the line knows.
    fn compare(&self, entry: &Entry) -> Compared {
        let Some(at) = &self.at else { return Compared::Unknown };
        let offset = entry.record.offset();
        if offset > at.offset {
            // The publication at the position is not in the broker's chain.
            let skips = entry.after < at.offset;
            return if skips { Compared::Other } else { Compared::Unknown };
        }
        let place = self.window.binary_search_by_key(&offset, |of| of.record.offset());
        let known = match place {
            Ok(place) => Some(fingerprint(&self.window[place])),
            Err(_) if offset == at.offset => self.mark,
            // The chain of the window has no such publication.
            Err(_) if self.window.front().is_some_and(|of| offset > of.after) => None,
            Err(_) => return Compared::Unknown,
        };
        match known == Some(fingerprint(entry)) {
            true => Compared::Same,
            false => Compared::Other,
        }
    }

    /// The stream went back. The subscribers get a gap, and those who come back a new epoch.
    fn rewind(&mut self, epoch: Epoch, effects: &mut Effects) {
        self.forget_held();
        self.restart(Cause::Rewind, effects);
        self.renews = Some(epoch);
    }

    /// The subscribers miss publications. The line begins anew.
    fn restart(&mut self, cause: Cause, effects: &mut Effects) {
        effects.gap = Some(cause);
        self.forget_place();
        self.begins = true;
    }

    fn forget_place(&mut self) {
        (self.at, self.mark) = (None, None);
        (self.begins, self.checks, self.is_base) = (false, false, false);
        self.looks = false;
        self.is_unsure = false;
        self.clear_window();
    }

    /// Forgets the window: the publications were removed from the history, or their time is over.
    pub(super) fn clear_window(&mut self) {
        (self.window, self.window_bytes, self.is_whole) = (VecDeque::new(), 0, false);
        self.is_base = false;
    }

    /// Forgets the publications once their time in the history is over: then the broker says what there is.
    pub(super) fn expire(&mut self, now: Millis, ttl_ms: u64) {
        if !self.window.is_empty() && now.since(self.touched) >= ttl_ms {
            self.clear_window();
        }
    }

    fn forget_held(&mut self) {
        self.is_stale |= self.read.is_some();
        (self.ahead, self.held) = (Vec::new(), 0);
    }

    /// The position is known. Publications that came meanwhile follow it.
    fn begin(
        &mut self,
        now: Millis,
        top: Position,
        entries: Vec<Entry>,
        is_whole: bool,
        kept_max: usize,
        effects: &mut Effects,
    ) {
        let checks = self.checks;
        self.forget_place();
        self.checks = checks;
        let newest = entries.last().filter(|entry| entry.record.offset() == top.offset);
        (self.mark, self.touched) = (newest.map(fingerprint), now);
        self.at = Some(top);
        if is_whole {
            self.fill(now, entries);
        } else if let Some(newest) = entries.into_iter().next_back() {
            self.prepend(newest);
        }
        self.drain(now, kept_max, effects);
    }

    /// Goes on to publications that were read.
    fn catch_up(
        &mut self,
        now: Millis,
        read: &OpenRead,
        top: &Position,
        entries: &[Entry],
        kept_max: usize,
        effects: &mut Effects,
    ) {
        let is_unsure = !read.reverse && std::mem::take(&mut self.is_unsure);
        let has = |offset| entries.iter().any(|entry| entry.record.offset() == offset);
        let is_gone = read.marked.is_some_and(|offset| !entries.is_empty() && !has(offset));
        if is_unsure && is_gone {
            // The publication at the position was removed, so that nothing shows whether what follows it now
            // is what followed it then.
            return self.restart(Cause::Trimmed, effects);
        }
        for entry in entries {
            let taken = self.take(now, entry, kept_max, effects);
            effects.repaired += u64::from(taken);
        }
        let progress = effects.repaired > 0;
        self.drain(now, kept_max, effects);
        let is_behind = |of: &Self| of.at.as_ref().is_some_and(|at| at.offset < top.offset);
        if !is_behind(self) {
            return;
        }
        if read.reverse || entries.len() >= read.limit && progress {
            self.checks = true;
        } else {
            self.restart(Cause::Trimmed, effects);
        }
    }

    /// Hands out a publication if it is the next one. Offsets may have holes: the one before it says so.
    fn take(&mut self, now: Millis, entry: &Entry, kept_max: usize, effects: &mut Effects) -> bool {
        let Some(at) = &mut self.at else { return false };
        let offset = entry.record.offset();
        if offset <= at.offset || entry.after != at.offset {
            return false;
        }
        let after = std::mem::replace(&mut at.offset, offset);
        let base = self.window.back().filter(|_| self.is_base).map(|base| base.record.clone());
        effects.deliver.push(Next { entry: entry.clone(), base, after });
        (self.mark, self.is_base) = (Some(fingerprint(entry)), true);
        (self.touched, self.confirmed) = (now, now);
        self.window_bytes += bytes_of(entry);
        self.window.push_back(entry.clone());
        self.unfiled += 1;
        while self.window.len() > kept_max.max(1) {
            // The broker keeps no more either, so that the window is as whole as before.
            self.pop_oldest();
        }
        true
    }

    fn pop_oldest(&mut self) -> bool {
        let oldest = self.window.pop_front();
        self.window_bytes -= oldest.as_ref().map_or(0, bytes_of);
        oldest.is_some()
    }

    /// Gives up the oldest publication of the window for the room of another channel.
    pub(super) fn shed_oldest(&mut self) -> bool {
        self.is_whole = false;
        let is_shed = self.pop_oldest();
        self.is_base &= !self.window.is_empty();
        is_shed
    }

    /// Puts older publications before those of the window: all that a recovery can use.
    fn fill(&mut self, now: Millis, entries: Vec<Entry>) {
        if self.window.is_empty() {
            // The broker has just shown that it keeps them, whatever the time here says: without this a window
            // that is over here would be dropped and read again without end.
            self.touched = now;
        }
        for entry in entries.into_iter().rev() {
            let end = match (self.window.front(), &self.at) {
                (Some(first), _) => first.record.offset(),
                (None, Some(at)) => at.offset.saturating_add(1),
                (None, None) => return,
            };
            if entry.record.offset() < end && !self.prepend(entry) {
                break;
            }
        }
        self.is_whole = true;
    }

    /// Puts a publication before those of the window, if it is the one before these.
    fn prepend(&mut self, entry: Entry) -> bool {
        let follows = match (self.window.front(), &self.at) {
            (Some(first), _) => first.after == entry.record.offset(),
            (None, Some(at)) => at.offset == entry.record.offset(),
            (None, None) => false,
        };
        if follows {
            self.window_bytes += bytes_of(&entry);
            self.window.push_front(entry);
            self.unfiled += 1;
        }
        follows
    }

    /// Hands out the publications ahead that follow now. Copies of older ones are dropped.
    fn drain(&mut self, now: Millis, kept_max: usize, effects: &mut Effects) {
        if self.is_unsure {
            // What comes may follow another publication than the one that the subscribers have.
            return;
        }
        let mut at = 0;
        while at < self.ahead.len() {
            let Some(position) = &self.at else { return };
            let Held { epoch, entry, .. } = &self.ahead[at];
            let same = position.epoch.as_ref() == Some(epoch);
            if !same || entry.after > position.offset {
                at += 1;
                continue;
            }
            let Held { entry, epoch, .. } = self.ahead.swap_remove(at);
            self.held -= entry.record.bytes();
            if self.take(now, &entry, kept_max, effects) {
                at = 0;
                continue;
            }
            effects.duplicates += 1;
            let is_known = self.at.as_ref().is_some_and(|at| entry.record.offset() <= at.offset);
            match self.compare(&entry) {
                Compared::Same => {}
                Compared::Other if is_known && self.mark.is_some() => {
                    return self.rewind(epoch, effects);
                }
                // Where the broker kept none it may be a late copy: only a read shows that it is there.
                Compared::Other | Compared::Unknown => self.checks = true,
            }
        }
    }

    /// The publications behind `since` up to the position, at most `limit`.
    pub(super) fn missed(&self, since: &Since, limit: usize) -> Missed<'_> {
        let Some((at, epoch)) = self.place() else { return Missed::Gone };
        let is_other = !since.epoch.is_empty() && since.epoch != epoch.as_str();
        if is_other || since.offset > at.offset {
            return Missed::Gone;
        }
        if since.offset == at.offset {
            return Missed::All(Vec::new());
        }
        if self.floor().is_some_and(|floor| since.offset < floor) {
            let is_whole = self.is_whole || self.window.len() >= limit;
            return if is_whole { Missed::Gone } else { Missed::Unread };
        }
        let start = self.window.partition_point(|of| of.record.offset() <= since.offset);
        if self.window.get(start).is_some_and(|next| next.after != since.offset) {
            // No publication of this life has that offset.
            return Missed::Gone;
        }
        let list: Vec<&Record> = self.window.range(start..).map(|of| &of.record).collect();
        if list.len() > limit { Missed::Gone } else { Missed::All(list) }
    }

    /// The same where only the latest publication counts (client protocol, 15.5).
    pub(super) fn latest(&self, since: &Since) -> Missed<'_> {
        let Some((at, epoch)) = self.place() else { return Missed::Gone };
        if since.offset > 0 && since.offset == at.offset && since.epoch == epoch.as_str() {
            return Missed::All(Vec::new());
        }
        match self.window.back() {
            Some(newest) => Missed::All(vec![&newest.record]),
            None if self.is_whole || at.offset == 0 => Missed::Gone,
            None => Missed::Unread,
        }
    }

    /// The offset that the window's publications follow; that of the position if it has none.
    fn floor(&self) -> Option<u64> {
        let at = self.at.as_ref()?;
        Some(self.window.front().map_or(at.offset, |first| first.after))
    }

    fn place(&self) -> Option<(&Position, &Epoch)> {
        self.at.as_ref().and_then(|at| Some((at, at.epoch.as_ref()?)))
    }
}

/// A publication beside those that the line knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    /// It is the one that the line knows at that offset.
    Same,
    /// The line knows another one there, or none.
    Other,
    /// The line doesn't know what was there.
    Unknown,
}

/// Two publications with the same offset are the same one if these are equal.
fn fingerprint(entry: &Entry) -> u64 {
    let Published { data, info, tags, .. } = entry.record.published();
    FixedState::default().hash_one((entry.time_ms, data, info, tags))
}

/// Bytes of a publication in a window.
fn bytes_of(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.record.bytes()
}

/// Bytes of publications that one line holds back.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Publications that one read behind the position asks for; more take another read.
const CHECKED_MAX: usize = 1024;

#[cfg(test)]
mod tests;
