//! The checker: it knows which publication stood where, and follows each subscription from its begin to a gap
//! or its end.

use std::collections::{BTreeMap, BTreeSet};

/// What each subscriber, each requester and the broker can rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// Each publication follows the one that the subscriber had before it: nothing is lost, and all is in
    /// order, unless the subscriber gets a gap or an unsuccessful recovery.
    Chain,
    /// No publication comes a second time.
    Twice,
    /// A recovery that succeeds has all publications up to the position where the subscription begins.
    Recovery,
    /// All subscribers of a node stand at the same position.
    Place,
    /// Each request gets one answer, within seconds.
    Answer,
    /// Without faults, all subscribers have the newest publication in the end.
    End,
    /// The broker knows exactly those who are subscribed.
    Presence,
    /// When all have left, nothing waits and nothing is listened to.
    Rest,
    /// A gap has a reason: where histories lack nothing, there is none.
    Needless,
}

/// A rule that was broken.
pub(super) type Broken = (Rule, String);

/// The publications that a subscriber may have as its latest: several where the stream went back there.
pub(super) type Latest = BTreeSet<u64>;

/// Where publications stood.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// For each publication by number: the one before it in its stream, 0 for the first. Several where a
    /// publisher tried again behind a failover, which loses the results of keys, too.
    before: BTreeMap<u64, Latest>,
    /// The publications that stood at an offset of a life of a channel; 0: the beginning.
    stood: BTreeMap<(usize, String, u64), Latest>,
    /// Publications that a failover lost, and its place in the order of these.
    lost: BTreeMap<u64, u64>,
    /// The number of failovers.
    pub(super) failovers: u64,
}

/// A subscriber's place: epoch, offset and latest publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) epoch: String,
    pub(super) offset: u64,
    pub(super) latest: Latest,
}

impl Truth {
    /// A publication has the one before it.
    pub(super) fn published(&mut self, number: u64, before: u64) {
        self.before.entry(number).or_default().insert(before);
    }

    /// A publication stands at the top of a channel.
    pub(super) fn stands(&mut self, channel: usize, epoch: &str, offset: u64, number: u64) {
        self.stood.entry((channel, epoch.to_owned(), offset)).or_default().insert(number);
    }

    /// Publications were lost by a failover.
    pub(super) fn lost(&mut self, numbers: &[u64]) {
        self.failovers += 1;
        self.lost.extend(numbers.iter().map(|number| (*number, self.failovers)));
    }

    /// The place of a subscriber that begins at a position.
    pub(super) fn place(&self, channel: usize, epoch: &str, offset: u64) -> Place {
        let key = (channel, epoch.to_owned(), offset);
        let latest = self.stood.get(&key).cloned().unwrap_or_default();
        Place { epoch: epoch.to_owned(), offset, latest }
    }

    /// When a subscriber's latest publication was lost by a failover.
    pub(super) fn lost_by(&self, latest: &Latest) -> Option<u64> {
        latest.iter().filter_map(|number| self.lost.get(number)).max().copied()
    }

    /// A publication for a subscriber. `excused`: this one may follow any.
    pub(super) fn check(
        &self,
        place: &mut Place,
        offset: u64,
        number: u64,
        excused: bool,
    ) -> Result<(), Broken> {
        if offset <= place.offset {
            return Err((Rule::Twice, format!("{number} at {offset} behind {place:?}")));
        }
        let before = &self.before[&number];
        if !excused && place.latest.is_disjoint(before) {
            let why = format!("{number} at {offset} follows {before:?}, behind {place:?}");
            return Err((Rule::Chain, why));
        }
        (place.offset, place.latest) = (offset, BTreeSet::from([number]));
        Ok(())
    }
}

#[test]
fn a_publication_follows_the_latest_one() {
    let mut truth = Truth::default();
    [(11, 0), (12, 11), (13, 12)].into_iter().for_each(|(of, before)| truth.published(of, before));
    truth.stands(0, "a life", 1, 11);
    let begin = truth.place(0, "a life", 1);
    let broken = |offset, number, excused| {
        let checked = truth.check(&mut begin.clone(), offset, number, excused);
        checked.err().map(|(rule, _)| rule)
    };
    assert_eq!((broken(2, 12, false), broken(3, 13, true)), (None, None));
    assert_eq!(broken(3, 13, false), Some(Rule::Chain));
    assert_eq!(broken(1, 11, false), Some(Rule::Twice));
    truth.lost(&[11]);
    assert_eq!(truth.lost_by(&begin.latest), Some(1));
}
