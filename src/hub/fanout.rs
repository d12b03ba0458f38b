//! A channel's parcels on their way to its subscribers on one shard.
//!
//! ```text
//!   groups:  [ parcels 7 8 9 | upto 900 ]  [ parcels 10 | upto 901 ]
//!              ^ cursor at place 512         someone subscribed between 9 and 10
//! ```
//! Parcels that have the same audience form a group: their frames are joined once for each kind of
//! subscriber, and each subscriber gets the group in one write. The audience of a group are the
//! places below `upto`, the list's length when the group's parcels came: whoever subscribes later
//! stands behind.
//!
//! What a subscriber gets of a group is the set of parcels that it takes (its filter, join events),
//! in its form. Subscribers with the same set and form share the joined bytes, and equal filters are
//! evaluated once for each group.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;

use super::filter::{FilterId, Filters};
use super::parcel::{Parcel, ParcelKind};
use super::subscribers::{Subscribers, Traits};
use crate::base::form::{Form, Transport};
use crate::base::frame::SharedFrame;
use crate::base::limits::{FANOUT_BYTES_MAX, JOIN_BYTES_MAX, JOIN_PARCELS_MAX};
use crate::base::tags::Tags;
use crate::base::time::Millis;

/// The share of one kind of subscriber in a group.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The frames, joined; `None` when nothing is for it.
    pub frame: Option<SharedFrame>,
    /// How many messages that is.
    pub messages: u32,
    /// Behind these comes one that can't be shown to it.
    pub unfit: bool,
    /// They go to subscribers that get their positions behind them: event sources and polls.
    pub marks: bool,
    /// They are parts of an answer.
    pub collected: bool,
    /// They may be patches.
    pub delta: bool,
    /// They begin with a patch, which builds on what came before them.
    pub patch: bool,
    /// The last publication among them, alone and in full: for who can't have the others. Only of
    /// channels whose publications may be dropped.
    pub last: Option<SharedFrame>,
}

/// How the frames of parcels in one form become one piece: appends it.
pub type Join = fn(form: Form, frames: &[&SharedFrame], out: &mut Vec<u8>);

/// A kind of subscriber: form, whether it has a base, and the parcels that it takes, a bit each.
type Kind = (Form, bool, u64);

#[derive(Debug)]
struct Group {
    parcels: Vec<Arc<Parcel>>,
    /// The longest forms of its parcels together, bytes.
    longest: usize,
    upto: u32,
    /// Publications may be dropped.
    drops: bool,
    /// Which of the parcels are publications.
    publications: u64,
    /// Bytes for the kinds of subscribers met so far.
    joined: Vec<(Kind, Outgoing)>,
    by_kind: HashMap<Kind, u32, foldhash::fast::FixedState>,
    /// Which publications pass a filter.
    passed: HashMap<u32, u64, foldhash::fast::FixedState>,
}

/// The pending parcels of a channel's subscribers, oldest first.
#[derive(Debug, Default)]
pub struct FanOut {
    groups: VecDeque<Group>,
    /// Places of the first group that are done.
    cursor: u32,
    bytes: usize,
}

/// One part of the work, filled by [`FanOut::walk`]: who gets what.
#[derive(Debug, Default)]
pub struct Walk {
    /// The available parcels.
    pub outgoing: Vec<Outgoing>,
    /// A connection's slot, and which of `outgoing` is for it.
    pub to: Vec<(u32, u32)>,
    /// Places that were walked.
    pub places: u32,
    /// These were the last of a group: when the home took the oldest publication in it, and how many places
    /// it had.
    pub ended: Option<(Millis, u32)>,
}

impl FanOut {
    /// Adds a parcel for the places below `upto`. False when [`FANOUT_BYTES_MAX`] is met: it is not
    /// taken, the channel has a gap here. `drops`: publications may be dropped on the way, so that they
    /// are kept apart from what may not.
    pub fn push(&mut self, parcel: Arc<Parcel>, upto: u32, drops: bool) -> bool {
        let (bytes, longest) = (parcel.bytes(), parcel.longest());
        if self.bytes + bytes > FANOUT_BYTES_MAX && !self.groups.is_empty() {
            return false;
        }
        self.bytes += bytes;
        let begun = self.groups.len() == 1 && self.cursor > 0;
        match self.groups.back_mut() {
            Some(group)
                if !begun
                    && group.joined.is_empty()
                    && group.upto == upto
                    && (!drops || group.parcels[0].kind == parcel.kind)
                    && group.parcels.len() < JOIN_PARCELS_MAX
                    && group.longest + longest <= JOIN_BYTES_MAX =>
            {
                group.add(parcel, longest);
            }
            _ => {
                let mut group = Group {
                    parcels: Vec::new(),
                    longest: 0,
                    upto,
                    drops,
                    publications: 0,
                    joined: Vec::new(),
                    by_kind: HashMap::default(),
                    passed: HashMap::default(),
                };
                group.add(parcel, longest);
                self.groups.push_back(group);
            }
        }
        true
    }

    /// The next part, at most `places_max` places of one group, into `walk`. False when all is done.
    pub fn walk(
        &mut self,
        places_max: u32,
        subscribers: &mut Subscribers,
        filters: &Filters,
        walk: &mut Walk,
        join: Join,
        scratch: &mut Vec<u8>,
    ) -> bool {
        walk.outgoing.clear();
        walk.to.clear();
        walk.ended = None;
        let Some(group) = self.groups.front_mut() else { return false };
        let end = group.upto.min(self.cursor.saturating_add(places_max));
        let range = self.cursor..end;
        walk.places = range.len() as u32;
        group.walk(range, subscribers, filters, walk, (join, scratch));
        self.cursor = end;
        if end == group.upto {
            let taken_at = group.parcels.iter().find_map(|parcel| parcel.taken_at);
            walk.ended = taken_at.map(|taken_at| (taken_at, group.upto));
            self.bytes -= group.parcels.iter().map(|parcel| parcel.bytes()).sum::<usize>();
            self.groups.pop_front();
            self.cursor = 0;
        }
        true
    }

    /// All that waits for the subscriber at `place`, oldest first, before its turn comes: the caller removes
    /// the subscriber from the list and hands this out first. The groups stay, for the others.
    pub fn pending_for(
        &mut self,
        place: u32,
        subscribers: &Subscribers,
        filters: &Filters,
        join: Join,
        scratch: &mut Vec<u8>,
    ) -> Vec<Outgoing> {
        let Some(subscriber) = subscribers.get(place) else { return Vec::new() };
        let mut traits = subscriber.traits;
        let mut outgoing = Vec::new();
        for (at, group) in self.groups.iter_mut().enumerate() {
            if place >= group.upto || at == 0 && place < self.cursor {
                continue;
            }
            let kind = group.kind(traits, filters, (join, scratch));
            outgoing.push(group.joined[kind as usize].1.clone());
            traits = traits.with_fresh(traits.fresh() && group.publications == 0);
        }
        outgoing
    }

    /// Waiting longer would not make the next write larger.
    pub fn is_ripe(&self) -> bool {
        let full = |group: &Group| {
            group.parcels.len() >= JOIN_PARCELS_MAX || group.longest >= JOIN_BYTES_MAX / 2
        };
        self.groups.len() > 1 || self.groups.front().is_some_and(full)
    }

    /// Where a subscriber at `place` stands: before the first publication with history that waits for it;
    /// `None` when none does.
    pub fn offset_at(&self, place: u32) -> Option<u64> {
        let groups = self.groups.iter().enumerate();
        // A subscriber behind the group does not get it, and one that was passed has it.
        let waiting =
            groups.filter(|(at, group)| place < group.upto && (*at > 0 || place >= self.cursor));
        waiting
            .flat_map(|(_, group)| &group.parcels)
            .find_map(|parcel| (parcel.offset > 0).then_some(parcel.after))
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes of the parcels that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Group {
    fn add(&mut self, parcel: Arc<Parcel>, longest: usize) {
        if parcel.kind == ParcelKind::Publication {
            self.publications |= 1 << self.parcels.len();
        }
        self.longest += longest;
        self.parcels.push(parcel);
        // A subscriber that has its bytes already would not get this one: only a group without any grows.
        debug_assert!(self.joined.is_empty());
    }

    fn walk(
        &mut self,
        range: Range<u32>,
        subscribers: &mut Subscribers,
        filters: &Filters,
        walk: &mut Walk,
        (join, scratch): (Join, &mut Vec<u8>),
    ) {
        let mut last: Option<(Traits, u32)> = None;
        for subscriber in subscribers.at_mut(range) {
            let traits = subscriber.traits;
            let at = match last {
                Some((known, at)) if known == traits => at,
                _ => self.kind(traits, filters, (join, scratch)),
            };
            last = Some((traits, at));
            walk.to.push((subscriber.conn, at));
            if traits.fresh() && self.publications != 0 {
                subscriber.traits = traits.with_fresh(false);
            }
        }
        walk.outgoing.extend(self.joined.iter().map(|(_, outgoing)| outgoing.clone()));
    }

    /// Where in `joined` the bytes for such a subscriber are.
    fn kind(&mut self, traits: Traits, filters: &Filters, to: (Join, &mut Vec<u8>)) -> u32 {
        let mut taken = match traits.has_lapsed() {
            true => 0,
            false => self.publications & self.passing(traits.filter(), filters),
        };
        if traits.takes_joins() {
            taken |= !self.publications & u64::MAX >> (64 - self.parcels.len());
        }
        let kind = (traits.form(), !traits.fresh(), taken);
        if let Some(at) = self.by_kind.get(&kind) {
            return *at;
        }
        let at = self.joined.len() as u32;
        self.joined.push((kind, self.join(kind, to)));
        self.by_kind.insert(kind, at);
        at
    }

    /// The publications that pass a filter.
    fn passing(&mut self, filter: u32, filters: &Filters) -> u64 {
        let Some(id) = FilterId::from_u32(filter) else { return u64::MAX };
        let (parcels, publications) = (&self.parcels, self.publications);
        *self.passed.entry(filter).or_insert_with(|| {
            let filter = filters.get(id);
            (0..parcels.len())
                .filter(|at| publications & 1 << at != 0)
                .filter(|at| filter.matches(Tags::packed(&parcels[*at].tags)))
                .fold(0, |passed, at| passed | 1 << at)
        })
    }

    fn join(&self, (form, based, taken): Kind, (join, scratch): (Join, &mut Vec<u8>)) -> Outgoing {
        let delta = form.takes_patches();
        let collected = form.is_poll();
        let marks = collected || form.transport() == Transport::UniSse;
        let mut outgoing = Outgoing {
            frame: None,
            messages: 0,
            unfit: false,
            marks,
            collected,
            delta,
            patch: false,
            last: None,
        };
        let mut frames = Vec::new();
        let mut has_base = based;
        let parcels = self.parcels.iter().enumerate();
        for parcel in parcels.filter(|(at, _)| taken & 1 << at != 0).map(|(_, parcel)| parcel) {
            let Some(frame) = parcel.frame(form, has_base) else {
                outgoing.unfit = parcel.unfit_for_json && !form.is_protobuf();
                debug_assert!(outgoing.unfit, "a form that is in use and wasn't made: {form:?}");
                break;
            };
            if parcel.kind == ParcelKind::Publication {
                has_base = true;
                outgoing.patch |= frames.is_empty() && based && delta;
                outgoing.last = parcel.full(form).filter(|_| self.drops).cloned();
            }
            frames.push(frame);
        }
        outgoing.messages = frames.len() as u32;
        outgoing.frame = match *frames {
            [] => None,
            // The one frame of a group is shared as it is.
            [frame] => Some(frame.clone()),
            _ => {
                scratch.clear();
                join(form, &frames, scratch);
                Some(SharedFrame::new(scratch))
            }
        };
        outgoing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::filter::FilterNode;
    use crate::base::form::Data;
    use crate::hub::filter::Filter;
    use crate::hub::parcel::Frames;
    use crate::hub::subscribers::Subscriber;

    const JSON_TEXT: Form = Form::JSON.with_data(Data::Text);
    const JSON_DELTA: Form = Form::JSON.with_data(Data::Delta);

    fn parcel(kind: ParcelKind, text: &str, tags: &[(&str, &str)]) -> Arc<Parcel> {
        let frame = |suffix: &str| SharedFrame::new(format!("{text}{suffix}").as_bytes());
        let frames =
            |full, patch: Option<&str>| Frames { full: Some(frame(full)), patch: patch.map(frame) };
        let packed = Tags::pack(tags.iter().copied());
        let publication = kind == ParcelKind::Publication;
        Arc::new(Parcel {
            frames: vec![
                (Form::JSON, frames("", None)),
                (Form::BINARY, frames("p", None)),
                (JSON_TEXT, frames("t", None)),
                (JSON_DELTA, frames("t", Some("d"))),
            ]
            .into_iter()
            .filter(|(form, _)| publication || form.data() == Data::Plain)
            .collect(),
            ..Parcel::new(kind, 1, Tags::packed(&packed))
        })
    }

    fn push(fan_out: &mut FanOut, text: &str, upto: u32) {
        assert!(fan_out.push(parcel(ParcelKind::Publication, text, &[]), upto, false));
    }

    fn concat(_: Form, frames: &[&SharedFrame], out: &mut Vec<u8>) {
        frames.iter().for_each(|frame| out.extend_from_slice(frame.bytes()));
    }

    /// Subscribers on slots 0.. with these traits.
    fn list(traits: impl IntoIterator<Item = Traits>) -> Subscribers {
        let mut subscribers = Subscribers::default();
        for (conn, traits) in (0..).zip(traits) {
            subscribers.add(Subscriber { conn, traits });
        }
        subscribers
    }

    fn plain(count: usize) -> Subscribers {
        list(vec![Traits::new(Form::JSON); count])
    }

    type Got = Vec<(u32, String, u32, bool)>;

    fn got(walk: &Walk) -> Got {
        let each = walk.to.iter().map(|(conn, at)| {
            let Outgoing { frame, messages, unfit, .. } = &walk.outgoing[*at as usize];
            let bytes = frame.as_ref().map_or(&b""[..], |frame| frame.bytes());
            (*conn, String::from_utf8(bytes.to_vec()).unwrap(), *messages, *unfit)
        });
        each.collect()
    }

    fn walk_once(fan_out: &mut FanOut, places_max: u32, subscribers: &mut Subscribers) -> Got {
        let mut walk = Walk::default();
        let filters = Filters::default();
        fan_out.walk(places_max, subscribers, &filters, &mut walk, concat, &mut Vec::new());
        got(&walk)
    }

    fn slices(fan_out: &mut FanOut, places_max: u32, count: usize) -> Vec<(String, Range<u32>)> {
        let mut subscribers = plain(count);
        let mut found = Vec::new();
        while !fan_out.is_empty() {
            let got = walk_once(fan_out, places_max, &mut subscribers);
            let (first, last) = (got[0].0, got[got.len() - 1].0);
            found.push((got[0].1.clone(), first..last + 1));
        }
        found
    }

    #[test]
    fn same_audience_is_joined_and_sliced() {
        let mut fan_out = FanOut::default();
        push(&mut fan_out, "a", 5);
        push(&mut fan_out, "b", 5);
        push(&mut fan_out, "c", 6);
        assert!(fan_out.bytes() > 0);
        let expected = [("ab", 0..3), ("ab", 3..5), ("c", 0..3), ("c", 3..6)];
        let expected: Vec<_> = expected.into_iter().map(|(t, r)| (t.to_owned(), r)).collect();
        assert_eq!(slices(&mut fan_out, 3, 6), expected);
        assert_eq!((fan_out.is_empty(), fan_out.bytes()), (true, 0));
    }

    #[test]
    fn publications_during_a_walk_join_the_next_group() {
        let mut fan_out = FanOut::default();
        push(&mut fan_out, "a", 4);
        let first = walk_once(&mut fan_out, 2, &mut plain(4));
        let one = |conn| (conn, "a".to_owned(), 1, false);
        assert_eq!(first, [one(0), one(1)]);
        push(&mut fan_out, "b", 4);
        let rest = slices(&mut fan_out, 10, 4);
        assert_eq!(rest, [("a".to_owned(), 2..4), ("b".to_owned(), 0..4)]);
    }

    #[test]
    fn a_subscriber_that_leaves_gets_its_pending_publications_first() {
        let mut fan_out = FanOut::default();
        let mut subscribers = plain(4);
        let filters = Filters::default();
        push(&mut fan_out, "a", 3);
        push(&mut fan_out, "b", 3);
        push(&mut fan_out, "c", 4);
        let ahead = |fan_out: &mut FanOut, subscribers: &Subscribers, place| {
            let outgoing =
                fan_out.pending_for(place, subscribers, &filters, concat, &mut Vec::new());
            let text = |o: Outgoing| String::from_utf8(o.frame.unwrap().bytes().to_vec()).unwrap();
            outgoing.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(ahead(&mut fan_out, &subscribers, 2), ["ab", "c"]);
        assert_eq!(ahead(&mut fan_out, &subscribers, 3), ["c"]);
        subscribers.remove(2, true);
        assert!(ahead(&mut fan_out, &subscribers, 2).is_empty());
        // The last group has been shown to somebody: what comes now stands behind it for all.
        push(&mut fan_out, "d", 4);
        walk_once(&mut fan_out, 1, &mut subscribers);
        assert_eq!(ahead(&mut fan_out, &subscribers, 0), ["c", "d"]);
        assert_eq!(ahead(&mut fan_out, &subscribers, 1), ["ab", "c", "d"]);
        let rest: Vec<_> =
            std::iter::from_fn(|| Some(walk_once(&mut fan_out, 9, &mut subscribers)))
                .take(3)
                .map(|got| got.into_iter().map(|(conn, text, ..)| (conn, text)).collect::<Vec<_>>())
                .collect();
        let all = |text: &str, conns: &[u32]| {
            conns.iter().map(|conn| (*conn, text.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(rest, [all("ab", &[1]), all("c", &[0, 1, 3]), all("d", &[0, 1, 3])]);
        assert!(fan_out.is_empty());
    }

    #[test]
    fn patches_of_pending_publications_keep_their_base() {
        let mut fan_out = FanOut::default();
        let subscribers = list([Traits::new(JSON_DELTA).with_fresh(true)]);
        push(&mut fan_out, "1", 1);
        let one = fan_out.pending_for(0, &subscribers, &Filters::default(), concat, &mut vec![]);
        push(&mut fan_out, "2", 1);
        let two = fan_out.pending_for(0, &subscribers, &Filters::default(), concat, &mut vec![]);
        let text = |o: &Outgoing| o.frame.as_ref().unwrap().bytes().to_vec();
        assert_eq!(one.iter().map(text).collect::<Vec<_>>(), [b"1t"]);
        assert_eq!(two.iter().map(text).collect::<Vec<_>>(), [b"1t", b"2d"]);
    }

    #[test]
    fn the_bound_refuses_but_one_always_goes() {
        let mut fan_out = FanOut::default();
        let large = "x".repeat(FANOUT_BYTES_MAX);
        push(&mut fan_out, &large, 1);
        assert!(!fan_out.push(parcel(ParcelKind::Publication, "x", &[]), 1, false));
        slices(&mut fan_out, 1, 1);
        push(&mut fan_out, &large, 1);
    }

    #[test]
    fn no_group_has_more_parcels_than_bits() {
        let mut fan_out = FanOut::default();
        (0..JOIN_PARCELS_MAX + 1).for_each(|_| push(&mut fan_out, "x", 1));
        let counts: Vec<usize> =
            slices(&mut fan_out, 9, 1).iter().map(|(text, _)| text.len()).collect();
        assert_eq!(counts, [JOIN_PARCELS_MAX, 1]);
    }

    #[test]
    fn each_subscriber_gets_the_frames_of_its_traits() {
        let mut filters = Filters::default();
        let node = FilterNode {
            key: "k".into(),
            cmp: "eq".into(),
            val: "1".into(),
            ..FilterNode::default()
        };
        let filter = filters.intern(Filter::new(&node).unwrap()).unwrap().get();
        let json = Traits::new(Form::JSON);
        let delta = Traits::new(JSON_DELTA).with_positioned(true);
        let mut subscribers = list([
            json,
            json.with_joins(true),
            json.with_filter(filter),
            json.with_filter(filter).with_joins(true),
            Traits::new(Form::BINARY),
            Traits::new(JSON_TEXT),
            delta,
            delta.with_fresh(true),
            delta.with_fresh(true).with_joins(true),
        ]);
        let mut fan_out = FanOut::default();
        let upto = subscribers.places();
        for (kind, text, tags) in [
            (ParcelKind::Presence, "j", &[][..]),
            (ParcelKind::Publication, "1", &[("k", "1")]),
            (ParcelKind::Publication, "2", &[("k", "2")]),
        ] {
            assert!(fan_out.push(parcel(kind, text, tags), upto, false));
        }
        let mut walk = Walk::default();
        assert!(fan_out.walk(99, &mut subscribers, &filters, &mut walk, concat, &mut Vec::new()));
        let expected = ["12", "j12", "1", "j1", "1p2p", "1t2t", "1d2d", "1t2d", "j1t2d"];
        let texts: Vec<String> = got(&walk).into_iter().map(|(_, text, _, _)| text).collect();
        assert_eq!(texts, expected);
        // From here on all have a base.
        assert!(subscribers.iter().all(|s| !s.traits.fresh()));
    }

    #[test]
    fn a_subscriber_stands_before_its_pending_publications() {
        let at = |offset| Arc::new(Parcel::new(ParcelKind::Publication, offset, Tags::NONE));
        let mut fan_out = FanOut::default();
        assert_eq!(fan_out.offset_at(0), None);
        // The second came behind 5 and 6, the third behind 7; a publication without history has no place.
        for (offset, upto) in [(0, 1), (5, 1), (6, 1), (7, 2)] {
            assert!(fan_out.push(at(offset), upto, false));
        }
        let places = |fan_out: &FanOut| [0, 1, 2].map(|place| fan_out.offset_at(place));
        assert_eq!(places(&fan_out), [Some(4), Some(6), None]);
        fan_out.cursor = 1;
        assert_eq!(places(&fan_out), [Some(6), Some(6), None]);
    }

    #[test]
    fn a_join_alone_makes_no_base() {
        let mut subscribers = list([Traits::new(JSON_DELTA).with_fresh(true)]);
        let mut fan_out = FanOut::default();
        assert!(fan_out.push(parcel(ParcelKind::Presence, "j", &[]), 1, false));
        assert_eq!(walk_once(&mut fan_out, 1, &mut subscribers), [(0, String::new(), 0, false)]);
        assert!(subscribers.iter().all(|s| s.traits.fresh()));
    }

    #[test]
    fn data_unfit_for_json_ends_a_json_subscriber() {
        let mut subscribers = list([Traits::new(Form::JSON), Traits::new(Form::BINARY)]);
        let mut fan_out = FanOut::default();
        push(&mut fan_out, "a", 2);
        let unfit = Parcel {
            frames: vec![(
                Form::BINARY,
                Frames { full: Some(SharedFrame::new(b"x")), patch: None },
            )],
            unfit_for_json: true,
            ..Parcel::new(ParcelKind::Publication, 1, Tags::NONE)
        };
        assert!(fan_out.push(Arc::new(unfit), 2, false));
        let got = walk_once(&mut fan_out, 2, &mut subscribers);
        assert_eq!(got, [(0, "a".to_owned(), 1, true), (1, "apx".to_owned(), 2, false)]);
    }

    #[test]
    fn droppable_publications_stay_apart_with_the_last_in_full() {
        let delta = Traits::new(JSON_DELTA).with_positioned(true).with_joins(true);
        let mut subscribers = list([delta, delta.with_fresh(true)]);
        let mut fan_out = FanOut::default();
        for (kind, text) in [
            (ParcelKind::Publication, "1"),
            (ParcelKind::Publication, "2"),
            (ParcelKind::Presence, "j"),
        ] {
            assert!(fan_out.push(parcel(kind, text, &[]), 2, true));
        }
        let mut walk = Walk::default();
        let mut next = || {
            let filters = Filters::default();
            fan_out.walk(9, &mut subscribers, &filters, &mut walk, concat, &mut Vec::new());
            let text = |frame: &Option<SharedFrame>| {
                frame.as_ref().map(|frame| String::from_utf8_lossy(frame.bytes()).into_owned())
            };
            let all = walk.to.iter().map(|(_, at)| &walk.outgoing[*at as usize]);
            all.map(|out| (text(&out.frame), out.patch, text(&out.last))).collect::<Vec<_>>()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(next(), [(some("1d2d"), true, some("2t")), (some("1t2d"), false, some("2t"))]);
        assert_eq!(next(), [(some("j"), false, None), (some("j"), false, None)]);
    }
}
